"""Typed tasks and trajectories, and where they are read from and written to."""

from toolwise.data.grading import grade
from toolwise.data.task import (
    AnswerType,
    Message,
    Task,
    Trajectory,
    data_uri,
    decode_image,
    encode_image,
)

__all__ = [
    "AnswerType",
    "Message",
    "Task",
    "Trajectory",
    "data_uri",
    "decode_image",
    "encode_image",
    "grade",
]
