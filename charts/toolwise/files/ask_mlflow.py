"""Ask MLflow whether it answers, and whether its database and S3 do."""

import sys
import urllib.request


def ask(path: str, seconds: float = 30) -> None:
    with urllib.request.urlopen(sys.argv[1] + path, timeout=seconds) as answer:
        print(path, answer.read().decode()[:500])


ask("/health")
ask("/api/2.0/mlflow/experiments/get?experiment_id=0")
try:
    # Where a policy closes S3's port, nothing answers at all.
    ask("/api/2.0/mlflow-artifacts/artifacts", 90)
except OSError as error:
    sys.exit(
        f"MLflow cannot list its artifacts ({error}): see its log, the Secret's AWS_… keys and "
        "networkPolicy.storagePorts, which has to name S3's port"
    )
