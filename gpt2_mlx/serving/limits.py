"""Everything that bounds a request, a connection and an answer. docs/limits.md tells them to users."""

# A request.
MAX_BODY = 1 << 20  # bytes
MAX_READ = 16 << 20  # bytes of a body that is too large, read and dropped so that its sender hears the answer
MAX_PROMPT_CHARS = 400_000  # of all prompts together; token ids count as one each
MAX_PROMPTS = 64
MAX_MESSAGES = 1024  # of a conversation
MAX_SEQUENCES = 128  # prompts x n
MAX_TOKENS = 4096
MAX_N = 64
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 5
MAX_KEY_CHARS = 64  # of `supersede`
MAX_TIMEOUT = 3600  # seconds
MAX_TOP_K = 2**31 - 1
MAX_TEMPERATURE = 2.0
MAX_BIAS = 100.0
MAX_BIASES = 300
MAX_CONSTRAINT_CHARS = 65_536  # of a schema, a pattern, a grammar or all strings of `choice`
MAX_CHOICES = 1024
MAX_LABELS = 16  # of metadata
MAX_LABEL_CHARS = 512  # of fields that are taken and not used
N_SEEDS = 2**63

# The exam of a constraint.
EXAM_SECONDS = 1.0  # of a processor, to compile it and
EXAM_TOKENS = 100  # to follow it for this many tokens
EXAM_WAIT = 30.0  # seconds until it has to end, however busy the machine is
EXAM_BYTES = 2 << 30  # of memory, where the system can tell
MAX_EXAMS = 16  # that wait for their turn
MAX_EXAMINED = 64  # whose exams are remembered

# An answer.
MAX_ECHO_CHARS = 4_000_000  # of prompts that are echoed, times n
MAX_NUMBERS = 1 << 18  # log-probabilities: of each token, and of each of its alternatives

# An audit.
MAX_AUDITS = 64  # answers that wait for theirs

# A connection.
MAX_CONNECTIONS = 4096  # fewer where the system allows fewer open files
HEADER_SECONDS = 20.0  # for the headers of a request to come
BODY_SECONDS = 30.0  # for its body
SEND_SECONDS = 60.0  # for a client to take a part of an answer, before it counts as gone
