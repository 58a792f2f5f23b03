"""Where artifacts live: local paths, `s3://` and `hf://`, and writing that is all or nothing."""

from toolwise.storage.atomic import atomic_directory, atomic_file
from toolwise.storage.content import cache_path, content_digest
from toolwise.storage.places import local_copy, local_files, publish
from toolwise.storage.s3 import INCOMPLETE, S3_KEYS, S3_REGION, s3_transient, signed_url

__all__ = [
    "INCOMPLETE",
    "S3_KEYS",
    "S3_REGION",
    "atomic_directory",
    "atomic_file",
    "cache_path",
    "content_digest",
    "local_copy",
    "local_files",
    "publish",
    "s3_transient",
    "signed_url",
]
