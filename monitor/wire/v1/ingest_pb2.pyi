from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_BF16: _ClassVar[Dtype]
    DTYPE_F16: _ClassVar[Dtype]
    DTYPE_F32: _ClassVar[Dtype]

class EndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_REASON_UNSPECIFIED: _ClassVar[EndReason]
    END_REASON_STOP: _ClassVar[EndReason]
    END_REASON_LENGTH: _ClassVar[EndReason]
    END_REASON_ABORTED: _ClassVar[EndReason]

class GapReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GAP_REASON_UNSPECIFIED: _ClassVar[GapReason]
    GAP_REASON_PREFIX_CACHED: _ClassVar[GapReason]
    GAP_REASON_DROPPED: _ClassVar[GapReason]
    GAP_REASON_RESTARTED: _ClassVar[GapReason]
    GAP_REASON_SAMPLED_OUT: _ClassVar[GapReason]

class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISIBILITY_UNSPECIFIED: _ClassVar[Visibility]
    VISIBILITY_TEXT_VISIBLE: _ClassVar[Visibility]
    VISIBILITY_TEXT_SILENT: _ClassVar[Visibility]
DTYPE_UNSPECIFIED: Dtype
DTYPE_BF16: Dtype
DTYPE_F16: Dtype
DTYPE_F32: Dtype
END_REASON_UNSPECIFIED: EndReason
END_REASON_STOP: EndReason
END_REASON_LENGTH: EndReason
END_REASON_ABORTED: EndReason
GAP_REASON_UNSPECIFIED: GapReason
GAP_REASON_PREFIX_CACHED: GapReason
GAP_REASON_DROPPED: GapReason
GAP_REASON_RESTARTED: GapReason
GAP_REASON_SAMPLED_OUT: GapReason
VISIBILITY_UNSPECIFIED: Visibility
VISIBILITY_TEXT_VISIBLE: Visibility
VISIBILITY_TEXT_SILENT: Visibility

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("bank_id", "model_name", "layers", "hidden_size", "max_frame_bytes", "initial_credit_bytes", "weights_fingerprint", "sampling_rate", "shared_memory_bytes", "projection")
    BANK_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_RATE_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    bank_id: str
    model_name: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    hidden_size: int
    max_frame_bytes: int
    initial_credit_bytes: int
    weights_fingerprint: str
    sampling_rate: float
    shared_memory_bytes: int
    projection: Projection
    def __init__(self, bank_id: _Optional[str] = ..., model_name: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., hidden_size: _Optional[int] = ..., max_frame_bytes: _Optional[int] = ..., initial_credit_bytes: _Optional[int] = ..., weights_fingerprint: _Optional[str] = ..., sampling_rate: _Optional[float] = ..., shared_memory_bytes: _Optional[int] = ..., projection: _Optional[_Union[Projection, _Mapping]] = ...) -> None: ...

class Projection(_message.Message):
    __slots__ = ("probes", "weights", "bias")
    PROBES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    probes: str
    weights: Tensor
    bias: Tensor
    def __init__(self, probes: _Optional[str] = ..., weights: _Optional[_Union[Tensor, _Mapping]] = ..., bias: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class StreamActivationsRequest(_message.Message):
    __slots__ = ("sequence", "sent_unix_ns", "hello", "spans", "events", "capture_errors", "rows")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_ERRORS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    sent_unix_ns: int
    hello: Hello
    spans: Spans
    events: _containers.RepeatedCompositeFieldContainer[Event]
    capture_errors: int
    rows: Tensor
    def __init__(self, sequence: _Optional[int] = ..., sent_unix_ns: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., spans: _Optional[_Union[Spans, _Mapping]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., capture_errors: _Optional[int] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("model_name", "model_revision", "weights_fingerprint", "tokenizer_hash", "template_hash", "engine_id", "data_parallel_rank", "layers", "hidden_size", "answer_every", "wants_shared_memory", "projection", "lacks_cached_prefixes")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_RANK_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_EVERY_FIELD_NUMBER: _ClassVar[int]
    WANTS_SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    LACKS_CACHED_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_revision: str
    weights_fingerprint: str
    tokenizer_hash: str
    template_hash: str
    engine_id: str
    data_parallel_rank: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    hidden_size: int
    answer_every: int
    wants_shared_memory: bool
    projection: str
    lacks_cached_prefixes: bool
    def __init__(self, model_name: _Optional[str] = ..., model_revision: _Optional[str] = ..., weights_fingerprint: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., template_hash: _Optional[str] = ..., engine_id: _Optional[str] = ..., data_parallel_rank: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., hidden_size: _Optional[int] = ..., answer_every: _Optional[int] = ..., wants_shared_memory: bool = ..., projection: _Optional[str] = ..., lacks_cached_prefixes: bool = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("request_ids", "starts", "counts", "token_ids")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    starts: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ..., starts: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "shared")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    shared: SharedData
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., shared: _Optional[_Union[SharedData, _Mapping]] = ...) -> None: ...

class SharedData(_message.Message):
    __slots__ = ("generation", "offset", "length")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    generation: int
    offset: int
    length: int
    def __init__(self, generation: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("socket", "token", "generation", "size_bytes")
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    socket: str
    token: bytes
    generation: int
    size_bytes: int
    def __init__(self, socket: _Optional[str] = ..., token: _Optional[bytes] = ..., generation: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("request_id", "start", "end", "gap")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    start: Start
    end: End
    gap: Gap
    def __init__(self, request_id: _Optional[str] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("external_id", "session_id", "prompt_length", "labels", "resumes")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    external_id: str
    session_id: str
    prompt_length: int
    labels: _containers.ScalarMap[str, str]
    resumes: bool
    def __init__(self, external_id: _Optional[str] = ..., session_id: _Optional[str] = ..., prompt_length: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., resumes: bool = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("reason", "total_tokens", "interventions")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    reason: EndReason
    total_tokens: int
    interventions: _containers.RepeatedCompositeFieldContainer[Intervention]
    def __init__(self, reason: _Optional[_Union[EndReason, str]] = ..., total_tokens: _Optional[int] = ..., interventions: _Optional[_Iterable[_Union[Intervention, _Mapping]]] = ...) -> None: ...

class Intervention(_message.Message):
    __slots__ = ("family", "at", "layers", "tokens", "touched", "largest", "mean")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOUCHED_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    family: str
    at: str
    layers: int
    tokens: int
    touched: int
    largest: float
    mean: float
    def __init__(self, family: _Optional[str] = ..., at: _Optional[str] = ..., layers: _Optional[int] = ..., tokens: _Optional[int] = ..., touched: _Optional[int] = ..., largest: _Optional[float] = ..., mean: _Optional[float] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("start", "count", "reason", "token_ids")
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    start: int
    count: int
    reason: GapReason
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start: _Optional[int] = ..., count: _Optional[int] = ..., reason: _Optional[_Union[GapReason, str]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class StreamActivationsResponse(_message.Message):
    __slots__ = ("through_sequence", "credit_bytes", "assessments", "faults", "shared_memory")
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ASSESSMENTS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    through_sequence: int
    credit_bytes: int
    assessments: _containers.RepeatedCompositeFieldContainer[Assessment]
    faults: _containers.RepeatedCompositeFieldContainer[Fault]
    shared_memory: SharedMemory
    def __init__(self, through_sequence: _Optional[int] = ..., credit_bytes: _Optional[int] = ..., assessments: _Optional[_Iterable[_Union[Assessment, _Mapping]]] = ..., faults: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("sequence", "request_id", "reason", "field", "message")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request_id: str
    reason: str
    field: str
    message: str
    def __init__(self, sequence: _Optional[int] = ..., request_id: _Optional[str] = ..., reason: _Optional[str] = ..., field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Assessment(_message.Message):
    __slots__ = ("request_id", "turn_id", "policy", "user_affect", "assistant_affect", "warranted", "over_index", "p_value", "coverage", "twin_over_index", "visibility", "families", "emotions", "alerts", "marks", "labels", "ended_unix_ns", "assistant_tokens", "user_tokens", "external_id", "prepared", "peak", "user_emotions", "user_families", "total_tokens", "scored_tokens", "gaps", "filled_tokens", "interventions")
    class FamiliesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EmotionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class UserEmotionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class UserFamiliesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class GapsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    USER_AFFECT_FIELD_NUMBER: _ClassVar[int]
    ASSISTANT_AFFECT_FIELD_NUMBER: _ClassVar[int]
    WARRANTED_FIELD_NUMBER: _ClassVar[int]
    OVER_INDEX_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    TWIN_OVER_INDEX_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    FAMILIES_FIELD_NUMBER: _ClassVar[int]
    EMOTIONS_FIELD_NUMBER: _ClassVar[int]
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ENDED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    ASSISTANT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    USER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    USER_EMOTIONS_FIELD_NUMBER: _ClassVar[int]
    USER_FAMILIES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    FILLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    turn_id: str
    policy: str
    user_affect: float
    assistant_affect: float
    warranted: float
    over_index: float
    p_value: float
    coverage: float
    twin_over_index: float
    visibility: Visibility
    families: _containers.ScalarMap[str, float]
    emotions: _containers.ScalarMap[str, float]
    alerts: _containers.RepeatedScalarFieldContainer[str]
    marks: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    ended_unix_ns: int
    assistant_tokens: int
    user_tokens: int
    external_id: str
    prepared: float
    peak: float
    user_emotions: _containers.ScalarMap[str, float]
    user_families: _containers.ScalarMap[str, float]
    total_tokens: int
    scored_tokens: int
    gaps: _containers.ScalarMap[str, int]
    filled_tokens: int
    interventions: _containers.RepeatedCompositeFieldContainer[Intervention]
    def __init__(self, request_id: _Optional[str] = ..., turn_id: _Optional[str] = ..., policy: _Optional[str] = ..., user_affect: _Optional[float] = ..., assistant_affect: _Optional[float] = ..., warranted: _Optional[float] = ..., over_index: _Optional[float] = ..., p_value: _Optional[float] = ..., coverage: _Optional[float] = ..., twin_over_index: _Optional[float] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., families: _Optional[_Mapping[str, float]] = ..., emotions: _Optional[_Mapping[str, float]] = ..., alerts: _Optional[_Iterable[str]] = ..., marks: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., ended_unix_ns: _Optional[int] = ..., assistant_tokens: _Optional[int] = ..., user_tokens: _Optional[int] = ..., external_id: _Optional[str] = ..., prepared: _Optional[float] = ..., peak: _Optional[float] = ..., user_emotions: _Optional[_Mapping[str, float]] = ..., user_families: _Optional[_Mapping[str, float]] = ..., total_tokens: _Optional[int] = ..., scored_tokens: _Optional[int] = ..., gaps: _Optional[_Mapping[str, int]] = ..., filled_tokens: _Optional[int] = ..., interventions: _Optional[_Iterable[_Union[Intervention, _Mapping]]] = ...) -> None: ...
