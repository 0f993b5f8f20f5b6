"""Names of OpenTelemetry's semantic conventions for messaging, pinned, and our own beside them.

The conventions are still in development, and the package that holds them is renamed at will; these are the names of
version 1.44.0. docs/tracing.md is this list in prose.
"""

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "uno.event_bus.dead_letter"
"""Name of the instrumentation."""

# ------------------------------------------------------------------------------------ of the conventions

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
"""The queue."""
PARTITION: Final = "messaging.destination.partition.id"
"""Index of the shard."""
GROUP: Final = "messaging.consumer.group.name"
CLIENT: Final = "messaging.client.id"
"""Consumer name of the worker."""
MESSAGE: Final = "messaging.message.id"
"""Id of the letter."""
CONVERSATION: Final = "messaging.message.conversation_id"
BATCH_COUNT: Final = "messaging.batch.message_count"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"

EXCEPTION: Final = "exception"
"""Name of the event of a failure."""
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

REDIS: Final = "redis"
"""Value of `SYSTEM`; the conventions name none for Redis."""

# ------------------------------------------------------------------------------------ our own

ATTEMPT: Final = "dlq.attempt"
"""Number of the attempt, from 1; on a link, that of the attempt that is linked."""
MAX_ATTEMPTS: Final = "dlq.max_attempts"
REASON: Final = "dlq.reason"
FINGERPRINT: Final = "dlq.error.fingerprint"
LINK_TYPE: Final = "dlq.link.type"
PREVIOUS_ATTEMPT: Final = "previous_attempt"
"""Value of `LINK_TYPE`."""

CONVERSATION_HEADERS: Final = ("correlation_id", "conversation_id", "correlation-id", "x-correlation-id")
"""Headers of a letter that `CONVERSATION` may come from; the first one that is there counts."""
