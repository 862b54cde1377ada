# GPU image: docker build --tag registry.example.com/tandem:0.1.0-ray2.60.0 .
# The devel base, as Triton, DeepSpeed and flash-attn compile kernels; its CUDA is that of torch 2.13 on PyPI.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        bash build-essential libnuma1 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user 1000 already.
RUN (userdel --remove ubuntu || true) \
    && useradd --create-home --uid 1000 --user-group --shell /bin/bash tandem \
    && install --directory --owner=tandem --group=tandem /opt/tandem /opt/tandem/outputs /opt/venv /shared \
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/tandem.sh

# Some versions of KubeRay start Ray from a login shell, which sets PATH anew: hence the profile.
USER 1000:1000
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1
# No reports about their use, also of Ray's own processes.
ENV RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_ERROR_REPORTING=false DO_NOT_TRACK=1
WORKDIR /opt/tandem

# The versions of pyproject.toml's extras `gpu` and `embedding`; setuptools and what follows it build flash-attn and Tandem.
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir "setuptools>=77" wheel packaging psutil numpy ninja \
        torch==2.13.0 vllm==0.32.0 bitsandbytes "sentence-transformers>=6.2,<7"
# flash-attn is compiled against the installed torch where it has no wheel for it: that takes long, and much memory for
# each of MAX_JOBS. With --build-arg FLASH_ATTN=0 there is none, and model.attention auto takes SDPA.
ARG FLASH_ATTN=1
ARG MAX_JOBS=4
RUN if [ "${FLASH_ATTN}" = 1 ]; then \
        MAX_JOBS="${MAX_JOBS}" pip install --no-cache-dir --no-build-isolation flash-attn; \
    fi
COPY --chown=1000:1000 . /opt/tandem
RUN pip install --no-cache-dir --no-build-isolation --editable . \
    && python -c "import ray; assert ray.__version__ == '2.60.0', ray.__version__"

CMD ["tandem", "--help"]
