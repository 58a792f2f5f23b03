"""What runs inside the sandbox: the standard library and PIL, and numpy where a session wants it.

The folder is bound read-only into the sandbox and run as `python -m inside.supervisor`; the host
shares nothing with it but `wire`.
"""
