"""The endpoints as the OpenAPI document has them: by the types that read bodies and write answers.

Owns no endpoint. The document is made in http/openapi.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lbhost.gateway.api import (
    chat,
    chat_reply,
    completions,
    embeddings,
    messages,
    messages_reply,
    native,
    pages,
    questions,
    rerank,
    responses,
    responses_reply,
)
from lbhost.gateway.api.replies import Completion


class Operation(msgspec.Struct, frozen=True):
    """A POST to one path."""

    name: str
    summary: str
    path: str
    request: Any
    """The type of its bodies; those of its answers, and of the events of streamed ones."""
    answer: Any
    chunks: tuple[Any, ...] = ()
    """Empty: nothing is streamed."""
    last: str = ""
    """What a stream ends with, unless with an error."""
    fails_as_event: bool = False
    """A stream's error is one of `chunks`, and not what an error's body is."""


class Page(msgspec.Struct, frozen=True):
    """A GET of one path. With `by_model` its query may name one of several models in `model`."""

    name: str
    summary: str
    path: str
    answer: Any
    by_model: bool = False


OPERATIONS = (
    Operation(
        "createChatCompletion",
        "Answers to a conversation",
        "/v1/chat/completions",
        chat.ChatRequest,
        Completion[chat_reply.ChatChoice],
        (Completion[chat_reply.ChatChunkChoice],),
        "[DONE]",
    ),
    Operation(
        "createCompletion",
        "Continuations of texts",
        "/v1/completions",
        completions.CompletionRequest,
        Completion[completions.TextChoice],
        (Completion[completions.TextChoice],),
        "[DONE]",
    ),
    Operation(
        "createResponse",
        "An answer to a conversation, as items; nothing is kept",
        "/v1/responses",
        responses.ResponsesRequest,
        responses_reply.ResponseBody,
        (responses_reply.ResponseEvent,),
        "response.completed or response.incomplete",
        fails_as_event=True,
    ),
    Operation(
        "createMessage",
        "An answer to a conversation, as Anthropic has it",
        "/v1/messages",
        messages.MessagesRequest,
        messages_reply.MessageAnswer,
        (messages_reply.MessageEvent,),
        "message_stop",
    ),
    Operation(
        "countMessageTokens",
        "What a message would cost",
        "/v1/messages/count_tokens",
        messages.CountRequest,
        questions.Counted,
    ),
    Operation(
        "complete",
        "A continuation of a text, as llama-server has it",
        "/completion",
        native.NativeRequest,
        native.NativeAnswer,
        (native.NativePart, native.NativeAnswer),
        "the event whose stop is true",
    ),
    Operation(
        "infill",
        "What is missing between two texts, as llama-server has it",
        "/infill",
        native.InfillRequest,
        native.NativeAnswer,
        (native.NativePart, native.NativeAnswer),
        "the event whose stop is true",
    ),
    Operation(
        "createEmbedding",
        "Vectors of texts, where an embedding model is served",
        "/v1/embeddings",
        embeddings.EmbeddingRequest,
        embeddings.EmbeddingList,
    ),
    Operation(
        "rerank",
        "Documents by how well they fit a query, where a reranking model is served",
        "/v1/rerank",
        rerank.RerankRequest,
        rerank.RerankAnswer,
    ),
    Operation(
        "tokenize",
        "The tokens of a text",
        "/tokenize",
        questions.TokenizeRequest,
        questions.Tokens,
    ),
    Operation(
        "detokenize",
        "The text of tokens",
        "/detokenize",
        questions.DetokenizeRequest,
        questions.Content,
    ),
    Operation(
        "applyTemplate",
        "A conversation as the model reads it",
        "/apply-template",
        chat.ChatRequest,
        questions.Rendered,
    ),
)

PAGES = (
    Page("listModels", "The models that are served", "/v1/models", pages.ModelList),
    Page("health", "Whether requests are answered now", "/health", pages.Health),
    Page("props", "The model, as llama-server tells of it", "/props", pages.Props, True),
    Page("slots", "What runs, as llama-server tells of it", "/slots", list[pages.Slot], True),
)
