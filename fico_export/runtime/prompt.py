"""`inputs/prompt.py` by the path that scripts outside this repository import it by."""

from fico_export.runtime.inputs.prompt import MAX_TEXT, Message, PromptFormatter

__all__ = ["MAX_TEXT", "Message", "PromptFormatter"]
