"""The agent: chat protocol, engines, and the one multi-turn loop everything goes through."""

from toolwise.agent.engine import Batch, Engine, Sampling, TokenRecord, Turn
from toolwise.agent.loop import CallRecord, Limits, Rollout, run_agent, tool_message, user_message
from toolwise.data.protocol import (
    ParsedCall,
    ParsedTurn,
    extract_answer,
    is_well_formed,
    parse_turn,
)

__all__ = [
    "Batch",
    "CallRecord",
    "Engine",
    "Limits",
    "ParsedCall",
    "ParsedTurn",
    "Rollout",
    "Sampling",
    "TokenRecord",
    "Turn",
    "extract_answer",
    "is_well_formed",
    "parse_turn",
    "run_agent",
    "tool_message",
    "user_message",
]
