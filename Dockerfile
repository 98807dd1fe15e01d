# For Linux containers: CPU, x86-64 and aarch64. A Mac's runs it too, without Metal.
FROM python:3.12-slim-bookworm

# mx.compile needs it at run time, and so does the forwarder to OpenBLAS; Debian's stable one will do.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# Before the code, so that a change of it installs nothing anew.
COPY requirements.txt requirements-common.txt requirements-mlx.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt

COPY . .
# Written to by whichever user --user names.
RUN useradd --uid 1000 gpt2 \
    && mkdir --parents checkpoints data \
    && chmod --recursive a+rwX checkpoints data
USER 1000

ENV MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
EXPOSE 5001
VOLUME /app/checkpoints
# A training serves nothing.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["sh", "-c", "grep -qa train.py /proc/1/cmdline \
        || python -c 'import urllib.request; urllib.request.urlopen(\"http://localhost:5001/ready\", timeout=4)'"]
ENTRYPOINT ["./docker-entrypoint.sh"]
CMD ["service"]
