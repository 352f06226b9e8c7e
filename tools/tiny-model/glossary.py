# Glossary of LLM-serving terms: (names, answer[, extra questions]).  Own wording, written for this model.
GLOSSARY = [
    (
        ["expert parallelism", "EP"],
        "Expert parallelism spreads the experts of a mixture-of-experts model over several GPUs. Each token is sent to the GPUs that hold its chosen experts, and the results are sent back and summed.",
    ),
    (
        ["wide expert parallelism", "wide EP"],
        "Wide expert parallelism spreads the experts over many GPUs, often on several machines, so that each GPU holds only a few experts. This frees memory for the KV cache and gives every expert a larger batch.",
    ),
    (
        ["prefill", "the prefill phase"],
        "Prefill is the first phase of inference. The model reads the whole prompt in one pass, fills the KV cache, and produces the first output token. It is usually limited by compute.",
    ),
    (
        ["decode", "the decode phase"],
        "Decode is the phase in which the model writes one token per step for each request. Every step reads the weights and the KV cache again, so it is usually limited by memory bandwidth.",
    ),
    (
        ["the KV cache", "KV cache", "a key-value cache"],
        "The KV cache stores the attention keys and values of tokens already processed. It lets the model write the next token without reading the whole sequence again.",
    ),
    (
        ["prefill/decode disaggregation", "PD disaggregation", "disaggregated serving"],
        "Prefill/decode disaggregation runs prefill and decode on separate groups of GPUs. The KV cache is sent from the prefill group to the decode group, so long prompts do not slow down tokens being written.",
    ),
    (
        ["data parallelism", "DP"],
        "Data parallelism runs several copies of a model, or of a part of it, and gives each copy different requests. It raises throughput without splitting the weights.",
    ),
    (
        ["tensor parallelism", "TP"],
        "Tensor parallelism splits each weight matrix over several GPUs. Every GPU computes a part of each layer, and the parts are joined with an all-reduce.",
    ),
    (
        ["pipeline parallelism", "PP"],
        "Pipeline parallelism puts different layers on different GPUs. Activations flow from one stage to the next, and several micro-batches keep all stages busy.",
    ),
    (
        ["data-parallel attention", "DP attention"],
        "Data-parallel attention gives each GPU its own requests and its own KV cache for the attention layers, while the experts are shared by all GPUs through expert parallelism.",
    ),
    (
        ["a mixture of experts", "a mixture-of-experts model", "MoE"],
        "A mixture of experts replaces one large feed-forward layer with many small ones called experts. A router picks a few experts for each token, so only a part of the weights is used per token.",
    ),
    (
        ["an expert"],
        "An expert is one of the small feed-forward networks in a mixture-of-experts layer. The router decides which tokens each expert has to process.",
    ),
    (
        ["a shared expert"],
        "A shared expert is a feed-forward network that every token passes through, next to the experts picked by the router. It holds knowledge that all tokens need.",
    ),
    (
        ["the router", "expert routing", "the gate"],
        "The router scores every expert for each token and keeps the best few. The outputs of the chosen experts are weighted by their scores and added up.",
    ),
    (
        ["group-limited routing", "node-limited routing"],
        "Group-limited routing splits the experts into groups and lets each token use only the best groups. It limits how many machines a token has to be sent to.",
    ),
    (
        ["expert load balancing", "EPLB"],
        "Expert load balancing places experts on GPUs so that each GPU gets about the same number of tokens. Busy experts can be copied to several GPUs.",
    ),
    (
        ["a redundant expert"],
        "A redundant expert is an extra copy of a busy expert on another GPU. Tokens are split between the copies, so no single GPU becomes the bottleneck.",
    ),
    (
        ["auxiliary-loss-free balancing", "the score correction bias"],
        "Auxiliary-loss-free balancing adds a small bias to each expert's score when experts are chosen. The bias goes up for idle experts and down for busy ones, and the model's loss is left unchanged.",
    ),
    (
        ["all-to-all communication", "an all-to-all"],
        "In an all-to-all, every GPU sends a different piece of data to every other GPU. Expert parallelism uses it twice per layer: to dispatch tokens to experts and to combine the results.",
    ),
    (
        ["dispatch", "token dispatch"],
        "Dispatch is the step that sends each token to the GPUs that hold its chosen experts. It is the first all-to-all of a mixture-of-experts layer.",
    ),
    (
        ["combine", "the combine step"],
        "Combine is the step that brings expert outputs back to the GPU that owns the token and adds them with the routing weights. It is the second all-to-all of a mixture-of-experts layer.",
    ),
    (
        ["DeepEP"],
        "DeepEP is a communication library for expert parallelism. It has high-throughput kernels for prefill and low-latency kernels for decode.",
    ),
    (
        ["DeepGEMM"],
        "DeepGEMM is a library of matrix multiplication kernels for FP8 weights and activations. It also has grouped kernels for the experts of a mixture-of-experts layer.",
    ),
    (
        ["a GEMM"],
        "A GEMM is a general matrix multiplication. Most of the time of a transformer is spent in GEMMs, so fast kernels for them matter a lot.",
    ),
    (
        ["a grouped GEMM"],
        "A grouped GEMM runs many small matrix multiplications in one kernel. It is used to apply all local experts to their tokens at once.",
    ),
    (
        ["multi-head latent attention", "MLA"],
        "Multi-head latent attention compresses keys and values into one small latent vector per token. Only that vector and a small rotary key are cached, so the KV cache becomes much smaller.",
    ),
    (
        ["weight absorption", "the absorbed form of MLA"],
        "Weight absorption folds the up-projection of MLA into the query and output projections. Decode can then attend to the cached latent vectors directly, without expanding them.",
    ),
    (
        ["rotary position embedding", "RoPE"],
        "Rotary position embedding turns pairs of query and key values by an angle that grows with the position. The attention score then depends on the distance between two tokens.",
    ),
    (
        ["YaRN"],
        "YaRN is a way to extend the context length of a model with rotary embeddings. It slows down the low frequencies, keeps the high ones, and rescales the attention scores.",
    ),
    (
        ["multi-token prediction", "MTP"],
        "Multi-token prediction trains an extra module to predict one token further ahead. At inference time its guess is used as a draft for speculative decoding.",
    ),
    (
        ["speculative decoding"],
        "Speculative decoding lets a cheap draft guess the next tokens and lets the full model check them in one pass. Accepted tokens are free, and the output stays the same.",
    ),
    (
        ["the acceptance rate", "acceptance rate"],
        "The acceptance rate is the share of draft tokens that the full model agrees with. A higher rate means more tokens per step in speculative decoding.",
    ),
    (
        ["FP8"],
        "FP8 is an 8-bit floating point format. The e4m3 variant has four exponent bits and three mantissa bits, and it halves memory and traffic compared with bf16.",
    ),
    (
        ["block-wise quantization", "block quantization"],
        "Block-wise quantization gives every small block of a matrix its own scale. DeepSeek-V3 uses blocks of 128 by 128 for weights and groups of 128 values for activations.",
    ),
    (
        ["bf16"],
        "bf16 is a 16-bit floating point format with the range of fp32 and fewer mantissa bits. It is the usual format for training and for weights that are not quantized.",
    ),
    (
        ["continuous batching"],
        "Continuous batching adds new requests to the running batch at every step and removes finished ones at once. The GPU stays busy without waiting for the slowest request.",
    ),
    (
        ["chunked prefill"],
        "Chunked prefill cuts a long prompt into pieces and processes them over several steps, together with decode tokens. It keeps the time between tokens steady for other requests.",
    ),
    (
        ["paged attention", "PagedAttention"],
        "Paged attention stores the KV cache in fixed-size blocks, like pages of memory. Blocks are given out on demand, so little memory is wasted.",
    ),
    (
        ["a block table"],
        "A block table lists which cache blocks hold the tokens of a request. The attention kernel reads it to find keys and values that are not next to each other in memory.",
    ),
    (
        ["prefix caching"],
        "Prefix caching keeps the KV cache of prompts already seen. When a new prompt starts with the same tokens, that part of prefill is skipped.",
    ),
    (
        ["prefix-aware routing", "the prefix-affinity router"],
        "Prefix-aware routing sends requests that share a prefix to the same replica. That replica already holds the matching KV cache, so less prefill work is needed.",
    ),
    (
        ["time to first token", "TTFT"],
        "Time to first token is the delay between sending a request and getting its first output token. It is made of queueing time and prefill time.",
    ),
    (
        ["time per output token", "TPOT", "inter-token latency"],
        "Time per output token is the average delay between two output tokens of a request. It shows how fast the text appears to the user during decode.",
    ),
    (
        ["throughput"],
        "Throughput is the number of tokens or requests that a system finishes per second. Larger batches raise throughput but can also raise latency.",
    ),
    (
        ["goodput"],
        "Goodput is the throughput of requests that meet their latency targets. Requests that are too slow do not count.",
    ),
    (
        ["a CUDA graph"],
        "A CUDA graph records a sequence of GPU kernels once and replays it with a single launch. It removes the launch overhead of each kernel, which matters most for small decode batches.",
    ),
    (
        ["dual-batch overlap", "DBO"],
        "Dual-batch overlap splits a batch into two halves. While one half communicates, the other half computes, so the time of the all-to-all is hidden.",
    ),
    (
        ["NVSHMEM"],
        "NVSHMEM is a library that lets GPU kernels read and write the memory of other GPUs directly. It is used for fast expert dispatch across machines.",
    ),
    (
        ["NCCL"],
        "NCCL is a library of collective operations for GPUs, such as all-reduce and all-gather. It uses NVLink inside a machine and the network between machines.",
    ),
    (
        ["NVLink"],
        "NVLink is a fast link between the GPUs of one machine. It is several times faster than PCIe and carries most traffic of tensor and expert parallelism.",
    ),
    (
        ["RDMA"],
        "RDMA lets one machine read or write the memory of another machine without involving its processor. It is used to move KV caches and expert inputs with low latency.",
    ),
    (
        ["NIXL"],
        "NIXL is a library that moves data such as KV caches between GPUs, machines and storage. It offers one interface over several transports.",
    ),
    (
        ["a KV connector"],
        "A KV connector is the part of a serving engine that sends and receives KV cache blocks. It links prefill workers, decode workers and external caches.",
    ),
    (
        ["an all-reduce"],
        "An all-reduce adds up the tensors of all GPUs and gives every GPU the sum. Tensor parallelism needs it after the attention and feed-forward layers.",
    ),
    (
        ["asynchronous scheduling", "async scheduling"],
        "Asynchronous scheduling prepares the next step on the CPU while the GPU still runs the current one. It hides scheduling time, so the GPU has no gaps between steps.",
    ),
    (
        ["the scheduler"],
        "The scheduler decides at every step which requests run and how many tokens each may process. It has to respect the token budget and the free cache blocks.",
    ),
    (
        ["preemption"],
        "Preemption pauses a running request when the cache is full. Its blocks are freed, and the request is computed again or loaded back later.",
    ),
    (
        ["greedy decoding"],
        "Greedy decoding always picks the token with the highest score. It is deterministic, which makes it useful for tests.",
    ),
    (
        ["temperature", "the sampling temperature"],
        "Temperature scales the scores before sampling. A low temperature makes the output more predictable, and a high one makes it more varied.",
    ),
    (
        ["top-p sampling", "nucleus sampling"],
        "Top-p sampling keeps the smallest set of tokens whose probabilities add up to p and samples from that set. It cuts off the unlikely tail.",
    ),
    (
        ["a tokenizer"],
        "A tokenizer turns text into a list of token ids and back. This model uses byte-level BPE, so every text can be encoded.",
    ),
    (
        ["a chat template"],
        "A chat template turns a list of messages into the prompt text that the model was trained on. It adds the special tokens for the user and the assistant.",
    ),
    (
        ["Ray Serve"],
        "Ray Serve is a library for serving models on a Ray cluster. It starts replicas, routes requests to them, and scales them up and down.",
    ),
    (
        ["the difference between prefill and decode"],
        "Prefill reads the whole prompt at once and is limited by compute. Decode writes one token at a time and is limited by memory bandwidth.",
        ["How do prefill and decode differ?", "Prefill versus decode: what is the difference?"],
    ),
    (
        ["the difference between latency and throughput"],
        "Latency is how long one request takes. Throughput is how much work the whole system finishes per second. Larger batches usually help throughput and hurt latency.",
        ["How do latency and throughput differ?"],
    ),
    (
        ["DeepSeek-V3", "the DeepSeek-V3 architecture"],
        "DeepSeek-V3 is a mixture-of-experts language model with multi-head latent attention, 256 routed experts per layer, FP8 weights and a multi-token prediction module.",
    ),
]
PHRASINGS = [
    "What is {t}?",
    "What is {t}?",
    "What's {t}?",
    "Define {t}.",
    "Explain {t}.",
    "Can you explain {t}?",
    "What does {t} mean?",
    "Tell me about {t}.",
    "Please explain what {t} is.",
    "In one or two sentences, what is {t}?",
    "I keep hearing about {t}. What is it?",
    "How would you describe {t}?",
    "{t}?",
    "Give me a short definition of {t}.",
    "Hi! What is {t}?",
    "Hello, can you tell me what {t} is?",
    "What do people mean by {t}?",
    "Could you tell me what {t} is?",
    "Explain {t} to me.",
    "Briefly explain {t}.",
    "What is {t} in LLM serving?",
    "In LLM inference, what is {t}?",
    "Please define {t}.",
    "I have a question: what is {t}?",
    "Quick question: what does {t} mean?",
    "I am new to this. What is {t}?",
    "Describe {t}.",
    "Can you describe {t} in simple words?",
    "What exactly is {t}?",
    "Help me understand {t}.",
]
