"""The table of SGLang's flags (those of 0.5.6) that kvrelay does not have under the same name.

Pure data. `python -m infra.command.document` writes docs/sglang-flags.md from it.
"""

from __future__ import annotations

from infra.command.foreign_flags import ForeignFlag, flags_of

SGLANG_FLAGS: tuple[ForeignFlag, ...] = (
    # What happens anyway.
    *flags_of("always", "a request's priority always counts", "enable-priority-scheduling"),
    *flags_of("always", "cached tokens are always told", "enable-cache-report"),
    *flags_of("always", "an idle node sleeps", "sleep-on-idle"),
    *flags_of("always", "rows with NaN or infinity always fail alone", "enable-nan-detection"),
    *flags_of("always", "metrics need no switch", "enable-metrics"),
    # What is a setting of ours.
    *flags_of("translated", "deterministic true", "enable-deterministic-inference"),
    *flags_of("translated", "device cuda:{}", "base-gpu-id=0"),
    # What changes no answer.
    *flags_of(
        "ignored",
        "a request without a sampling_seed gets one of its own; give requests theirs",
        "random-seed=",
    ),
    *flags_of(
        "ignored",
        "a step's prompt tokens are bounded by --chunked-prefill-size",
        "max-prefill-tokens= enable-mixed-chunk pp-max-micro-batch-size=",
    ),
    *flags_of(
        "ignored",
        "requests wait at the coordinator by priority and arrival; --policy is how they are routed",
        "schedule-policy=fcfs|priority schedule-conservativeness=1.0|1 scheduler-recv-interval= "
        "num-continuous-decode-steps= disable-overlap-schedule num-reserved-decode-tokens= "
        "load-balance-method= load-watch-interval= prefill-round-robin-balance "
        "priority-scheduling-preemption-threshold= disaggregation-decode-polling-interval=",
    ),
    *flags_of(
        "ignored",
        "CUDA graphs are captured where the attention backend allows it",
        "disable-cuda-graph cuda-graph-max-bs= cuda-graph-bs=* disable-cuda-graph-padding "
        "enable-profile-cuda-graph enable-cudagraph-gc enable-piecewise-cuda-graph "
        "piecewise-cuda-graph-tokens= piecewise-cuda-graph-compiler= "
        "piecewise-cuda-graph-max-tokens=",
    ),
    *flags_of(
        "ignored",
        "kernels are chosen by --device, --dtype and --attention-backend",
        "sampling-backend= enable-torch-compile torch-compile-max-bs= "
        "enable-torch-compile-debug-mode "
        "triton-attention-reduce-in-fp32 triton-attention-num-kv-splits= "
        "triton-attention-split-tile-size= flashinfer-mla-disable-ragged "
        "enable-flashinfer-autotune "
        "enable-flashinfer-allreduce-fusion disable-shared-experts-fusion "
        "disable-chunked-prefix-cache moe-runner-backend= flashinfer-mxfp4-moe-precision= "
        "disable-flashinfer-cutlass-moe-fp4-allgather nsa-prefill-backend= nsa-decode-backend= "
        "enable-attn-tp-input-scattered enable-nsa-prefill-context-parallel "
        "enable-two-batch-overlap enable-single-batch-overlap tbo-token-distribution-threshold=",
    ),
    *flags_of(
        "ignored",
        "ranks talk over NCCL on GPUs and over gloo on CPUs",
        "disable-custom-all-reduce enable-nccl-nvls enable-symm-mem enable-mscclpp "
        "enable-torch-symm-mem enable-p2p-check nccl-port= dist-timeout= enable-dp-lm-head",
    ),
    *flags_of(
        "ignored",
        "grammars are always compiled by llguidance",
        "grammar-backend=llguidance disable-outlines-disk-cache "
        "constrained-json-disable-any-whitespace",
    ),
    *flags_of(
        "ignored",
        "the coordinator makes tokens and text; --workers starts several",
        "tokenizer-mode=auto|fast tokenizer-worker-num=1 enable-tokenizer-batch-encode "
        "disable-tokenizer-batch-decode enable-dynamic-batch-tokenizer "
        "dynamic-batch-tokenizer-batch-size= dynamic-batch-tokenizer-batch-timeout=",
    ),
    *flags_of(
        "ignored",
        "input_ids are always taken, and answers have their text too",
        "skip-tokenizer-init",
    ),
    *flags_of(
        "ignored",
        "the defaults of sampling are those of the API, not of the model",
        "sampling-defaults=openai",
    ),
    *flags_of("ignored", "the model's family decides how it is read", "model-impl=auto|sglang"),
    *flags_of("ignored", "a request's stream_interval decides", "stream-interval=1"),
    *flags_of(
        "ignored", "a node is served from as soon as it is ready", "skip-server-warmup warmups="
    ),
    *flags_of("ignored", "weights are read once and never exchanged", "weight-version=default"),
    *flags_of(
        "ignored",
        "the log has a line per request; --log-level is for all of it",
        "log-level-http= log-requests log-requests-level= show-time-cost decode-log-interval= "
        "enable-request-time-stats-logging gc-warning-threshold-secs= crash-dump-folder= "
        "enable-layerwise-nvtx-marker",
    ),
    *flags_of(
        "ignored",
        "metrics have fixed names and buckets",
        "enable-metrics-for-all-schedulers tokenizer-metrics-custom-labels-header= "
        "tokenizer-metrics-allowed-custom-labels=* bucket-time-to-first-token=* "
        "bucket-inter-token-latency=* bucket-e2e-request-latency=* collect-tokens-histogram "
        "prompt-tokens-buckets=* generation-tokens-buckets=* enable-expert-distribution-metrics",
    ),
    *flags_of(
        "ignored",
        "a node whose step hangs is noticed by its heartbeats",
        "watchdog-timeout=",
    ),
    *flags_of(
        "ignored",
        "all pages are of one pool, and the least recently used go first",
        "radix-eviction-policy=lru hybrid-kvcache-ratio= swa-full-tokens-ratio= "
        "disable-hybrid-swa-memory",
    ),
    *flags_of(
        "ignored",
        "--kv-backend says how pages travel",
        "disaggregation-transfer-backend= disaggregation-bootstrap-port= disaggregation-ib-device=",
    ),
    *flags_of("ignored", "weights are mapped, never copied", "weight-loader-disable-mmap"),
    *flags_of(
        "ignored",
        "this version reads texts alone",
        "mm-attention-backend= disable-fast-image-processor keep-mm-feature-on-device "
        "mm-max-concurrent-calls= mm-per-request-timeout= enable-broadcast-mm-inputs-process "
        "mm-enable-dp-encoder mm-process-config= file-storage-path=",
    ),
    *flags_of("ignored", "a priority is never an error", "abort-on-priority-when-disabled"),
    *flags_of("ignored", "the system places processes; start them with numactl", "numa-node=*"),
    # What kvrelay cannot do.
    *flags_of(
        "refused",
        "--quantization rounds plain weights at load, and quantised checkpoints are read as they "
        "are; other ways to quantise weights are not in this version",
        "modelopt-quant= "
        "modelopt-checkpoint-restore-path= modelopt-checkpoint-save-path= modelopt-export-path= "
        "quantize-and-serve torchao-config=",
    ),
    *flags_of(
        "refused",
        "FP8 pages take their scales from the checkpoint, or have a scale per token and head",
        "quantization-param-path=",
    ),
    *flags_of(
        "refused",
        "logits have the dtype of the model; use --dtype float32",
        "enable-fp32-lm-head",
    ),
    *flags_of(
        "refused",
        "shared prefixes are what the cluster is made of; a cache_salt of its own keeps a request "
        "from cached pages",
        "disable-radix-cache",
    ),
    *flags_of(
        "refused",
        "more nodes take its place: --prefill and --decode say how many",
        "data-parallel-size,dp-size,dp=1 enable-dp-attention disaggregation-decode-dp=1",
    ),
    *flags_of(
        "refused",
        "a model is split by --tensor-parallel-size alone",
        "pipeline-parallel-size,pp-size,pp=1 disaggregation-prefill-pp=1 "
        "expert-parallel-size,ep-size,ep=1 moe-a2a-backend=none moe-dense-tp-size= enable-eplb "
        "eplb-algorithm=auto eplb-rebalance-num-iterations= eplb-rebalance-layers-per-chunk= "
        "eplb-min-rebalancing-utilization-threshold= deepep-mode=auto deepep-config= "
        "ep-num-redundant-experts=0 ep-dispatch-algorithm= init-expert-location=trivial "
        "expert-distribution-recorder-mode= expert-distribution-recorder-buffer-size= "
        "elastic-ep-backend=none mooncake-ib-device=",
    ),
    *flags_of(
        "refused",
        "a node is of one host; start others there with `kvrelay prefill` and `kvrelay decode`, "
        "and name one Redis to all with --redis-url",
        "nnodes=1 node-rank=0 dist-init-addr,nccl-init-addr=",
    ),
    *flags_of("refused", "a node takes consecutive GPUs from --device on", "gpu-id-step=1"),
    *flags_of(
        "refused",
        "`kvrelay prefill`, `kvrelay decode` and `kvrelay coordinator` start single processes; "
        "`kvrelay up` starts a whole cluster",
        "disaggregation-mode=null",
    ),
    *flags_of(
        "refused",
        "it is --decode-tensor-parallel-size of `kvrelay up`",
        "disaggregation-decode-tp=",
    ),
    *flags_of("refused", "a higher priority goes first", "schedule-low-priority-values-first"),
    *flags_of(
        "refused",
        "there is one --attention-backend for prompts and answers",
        "prefill-attention-backend= decode-attention-backend=",
    ),
    *flags_of(
        "refused",
        "the tokenizer is that of the model directory; put its files there",
        "tokenizer-path=@model_path",
    ),
    *flags_of(
        "refused",
        "download that revision, and give --model-path its directory",
        "revision=main",
    ),
    *flags_of("refused", "set HF_HOME to where models are kept", "download-dir="),
    *flags_of(
        "refused",
        "the files of the model directory decide; change its config.json or generation_config.json",
        "json-model-override-args={} preferred-sampling-params= model-loader-extra-config={} "
        "completion-template= decrypted-config-file= decrypted-draft-config-file=",
    ),
    *flags_of(
        "refused",
        "whitespace in JSON is what the grammar of the request says",
        "constrained-json-whitespace-pattern=",
    ),
    *flags_of(
        "refused",
        "no code of clients or models is ever run",
        "enable-custom-logit-processor custom-weight-loader=* forward-hooks= tool-server=",
    ),
    *flags_of(
        "refused", "only tokens, text and logprobs are returned", "enable-return-hidden-states"
    ),
    *flags_of(
        "refused",
        "this version generates text from text",
        "is-embedding enable-multimodal multi-item-scoring-delimiter= dllm-algorithm= "
        "dllm-block-size=",
    ),
    *flags_of(
        "refused",
        "LoRA adapters are not served",
        "enable-lora max-lora-rank= lora-target-modules=* lora-paths=* max-loras-per-batch= "
        "max-loaded-loras= lora-eviction-policy= lora-backend= max-lora-chunk-size=",
    ),
    *flags_of(
        "refused",
        "tokens are not speculated on in this version",
        "speculative-algorithm= speculative-draft-model-path,speculative-draft-model= "
        "speculative-draft-model-revision= speculative-draft-load-format= speculative-num-steps= "
        "speculative-eagle-topk= speculative-num-draft-tokens= "
        "speculative-accept-threshold-single= speculative-accept-threshold-acc= "
        "speculative-token-map= speculative-attention-mode= speculative-moe-runner-backend= "
        "speculative-ngram-min-match-window-size= speculative-ngram-max-match-window-size= "
        "speculative-ngram-min-bfs-breadth= speculative-ngram-max-bfs-breadth= "
        "speculative-ngram-match-type= speculative-ngram-branch-length= "
        "speculative-ngram-capacity=",
    ),
    *flags_of(
        "refused",
        "KV stays on the devices of the nodes, which share it; start more of them",
        "enable-hierarchical-cache hicache-ratio= hicache-size= hicache-write-policy= "
        "hicache-io-backend= hicache-mem-layout= hicache-storage-backend= "
        "hicache-storage-prefetch-policy= hicache-storage-backend-extra-config= enable-lmcache "
        "disaggregation-decode-enable-offload-kvcache",
    ),
    *flags_of(
        "refused",
        "weights stay on the devices of a node; use more of them with --tensor-parallel-size",
        "cpu-offload-gb=0 offload-group-size= offload-num-in-group= offload-prefetch-step= "
        "offload-mode= enable-memory-saver enable-weights-cpu-backup "
        "enable-draft-weights-cpu-backup delete-ckpt-after-loading kt-weight-path= kt-method= "
        "kt-cpuinfer= kt-threadpool-count= kt-num-gpu-experts= "
        "kt-max-deferred-experts-per-token=",
    ),
    *flags_of(
        "refused",
        "weights come from the files of --model-path",
        "checkpoint-engine-wait-weights-before-ready "
        "remote-instance-weight-loader-seed-instance-ip= "
        "remote-instance-weight-loader-seed-instance-service-port= "
        "remote-instance-weight-loader-send-weights-group-ports= rl-on-policy-target=",
    ),
    *flags_of(
        "refused",
        "none of the supported architectures has it",
        "max-mamba-cache-size= mamba-ssm-dtype= mamba-full-memory-ratio= enable-double-sparsity "
        "ds-channel-config-path= ds-heavy-channel-num= ds-heavy-token-num= ds-heavy-channel-type= "
        "ds-sparse-decode-threshold=",
    ),
    *flags_of(
        "refused",
        "prefill and decode are nodes of their own",
        "enable-pdmux pdmux-config-path= sm-group-num=",
    ),
    *flags_of(
        "refused",
        "a prompt beyond the context is answered with a 400; shorten it",
        "allow-auto-truncate",
    ),
    *flags_of("refused", "requests come over HTTP", "grpc-mode"),
    *flags_of("refused", "have the proxy take the prefix off the path", "fastapi-root-path="),
    *flags_of(
        "refused",
        "which node owns what is in Redis, and at /admin/cache/stats",
        "kv-events-config=",
    ),
    *flags_of(
        "refused",
        "traces go to a collector by OTLP over HTTP; use --otlp-endpoint http://collector:4318",
        "enable-trace otlp-traces-endpoint=",
    ),
    *flags_of(
        "refused",
        "this version does not write that; /metrics and each answer's meta_info tell its times",
        "export-metrics-to-file export-metrics-to-file-dir= "
        "debug-tensor-dump-output-folder= debug-tensor-dump-layers=* "
        "debug-tensor-dump-input-file= debug-tensor-dump-inject=",
    ),
    *flags_of(
        "refused",
        "settings come from flags and from variables, as KVRELAY_PAGE_SIZE=64",
        "config=",
    ),
)
