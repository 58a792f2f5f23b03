"""What runs inside the sandbox: standard library only, plus PIL and numpy once it has started.

The folder is bound read-only into the sandbox and run as `python -m inside.supervisor`; the host
shares nothing with it but `wire`.
"""
