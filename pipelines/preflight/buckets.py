"""Whether a bucket or object is there for the credentials that the steps will have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.preflight.finding import Answer
from toolwise.storage import S3_REGION


def look_up_bucket(bucket: str, secret: Mapping[str, str], key: str = "") -> Answer:
    """Ask for a bucket, or for an object in it.

    Args:
        bucket: its name.
        secret: `S3_KEYS` and, where it is named, `S3_REGION`.
        key: the object's; empty asks for the bucket.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = secret.get("AWS_ENDPOINT_URL_S3") or None
    quick = Config(
        connect_timeout=5,
        read_timeout=10,
        retries={"total_max_attempts": 1, "mode": "standard"},
        signature_version="s3v4",
    )
    where = endpoint or "AWS"
    try:
        client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=secret.get(S3_REGION) or "us-east-1",
            aws_access_key_id=secret.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=secret.get("AWS_SECRET_ACCESS_KEY"),
            config=quick,
        )
        if key:
            client.head_object(Bucket=bucket, Key=key)
        else:
            client.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            return Answer(False, f"{where} has no such {'object' if key else 'bucket'}")
        if status in (401, 403):
            return Answer(False, f"{where} refuses the secret's credentials")
        return Answer(None, f"{where} answers {status}")
    except (BotoCoreError, ValueError) as error:
        return Answer(None, f"{where} could not be asked from here ({error})")
    return Answer(True, f"at {where}")
