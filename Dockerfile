# zerosum_ext on a CPU:
#   docker build -t zerosum-ext .
#   docker run --rm -v "$PWD:/data" -w /data zerosum-ext train ratings.csv --output runs/mine
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir "setuptools>=77" wheel ninja \
    && /opt/venv/bin/pip install --no-cache-dir ${TORCH}
COPY . /src
RUN /opt/venv/bin/pip install --no-cache-dir --no-build-isolation /src && /opt/venv/bin/zerosum-ext doctor

FROM python:${PYTHON}-slim-bookworm
# OpenMP, which torch's kernels run on.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home user
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib
USER user
WORKDIR /data
ENTRYPOINT ["zerosum-ext"]
