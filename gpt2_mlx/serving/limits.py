"""What bounds a request."""

MAX_BODY = 1 << 20  # bytes
MAX_READ = 16 << 20  # bytes of a body that is too large, read and dropped so that its sender hears the answer
MAX_PROMPT_CHARS = 400_000  # of all prompts of a request together
MAX_PROMPTS = 64
MAX_SEQUENCES = 128  # prompts x n
MAX_TOKENS = 4096
MAX_N = 64
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 5
MAX_TOP_K = 2**31 - 1
MAX_TEMPERATURE = 2.0
MAX_BIAS = 100.0
MAX_BIASES = 300
N_SEEDS = 2**63
