# GPU image: docker build --tag registry.example.com/tandem:0.1.0-ray2.60.0 .
# The devel base, as Triton, DeepSpeed and flash-attn compile kernels; its CUDA is that of torch 2.13 on PyPI. A tag can be
# moved to another image, a digest cannot: --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04@sha256:..., see
# k8s/README.md.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        bash build-essential libnuma1 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user 1000 already. The processes' user owns where results go, and nothing that runs.
RUN (userdel --remove ubuntu || true) \
    && useradd --create-home --uid 1000 --user-group --shell /bin/bash tandem \
    && install --directory --owner=tandem --group=tandem /opt/tandem/outputs /shared \
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/tandem.sh

# Some versions of KubeRay start Ray from a login shell, which sets PATH anew: hence the profile.
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1
# No reports about their use, also of Ray's own processes.
ENV RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_ERROR_REPORTING=false DO_NOT_TRACK=1
WORKDIR /opt/tandem

# The versions of pyproject.toml's extras `gpu` and `embedding`; setuptools and what follows it build flash-attn and Tandem.
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir "setuptools>=77" wheel packaging psutil numpy ninja \
        torch==2.13.0 vllm==0.32.0 bitsandbytes==0.50.2 "sentence-transformers>=6.2,<7"
# flash-attn is compiled against the installed torch where it has no wheel for it: that takes long, and much memory for
# each of MAX_JOBS. With --build-arg FLASH_ATTN=0 there is none, and model.attention auto takes SDPA.
ARG FLASH_ATTN=1
ARG MAX_JOBS=4
RUN if [ "${FLASH_ATTN}" = 1 ]; then \
        MAX_JOBS="${MAX_JOBS}" pip install --no-cache-dir --no-build-isolation flash-attn==2.8.3.post2; \
    fi
# By name, so that what else lies in this directory stays here.
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE .rayignore /opt/tandem/
COPY actors /opt/tandem/actors
COPY algorithms /opt/tandem/algorithms
COPY launch /opt/tandem/launch
COPY configs /opt/tandem/configs
COPY examples /opt/tandem/examples
RUN pip install --no-cache-dir --no-build-isolation --editable . \
    && python -m compileall -q actors algorithms launch \
    && chmod --recursive a+rX,go-w /opt/tandem \
    && python -c "import ray; assert ray.__version__ == '2.60.0', ray.__version__"

USER 1000:1000
CMD ["tandem", "--help"]
