"""Typed tasks and trajectories, and where they are read from and written to."""

from toolwise.data.grading import grade
from toolwise.data.image import (
    CorruptImage,
    data_uri,
    decode_image,
    encode_image,
    open_image,
)
from toolwise.data.task import AnswerType, Message, Task, Trajectory

__all__ = [
    "AnswerType",
    "CorruptImage",
    "Message",
    "Task",
    "Trajectory",
    "data_uri",
    "decode_image",
    "encode_image",
    "grade",
    "open_image",
]
