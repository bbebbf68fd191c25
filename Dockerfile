# The images of kelpie-celery. docs/containers.md says what each is for, and how to add the worker to an image of yours.
#
#   worker    a GPU node's worker; /opt/kelpie in it is self-contained, for COPY --from into any image
#   control   control worker, beat, Flower and the kelpie command
#   redis     Redis, set up to forget nothing         } for docker-compose.yml: one machine, or a trial
#   storage   an S3 server (SeaweedFS)                }
#
# docker build --target worker -t kelpie/worker .

ARG DEBIAN=debian:12.12-slim

# -- what the others are built on --------------------------------------------------------------------------------------

FROM ${DEBIAN} AS python
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/lib/apt/lists/*
ENV PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

FROM python AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils patchelf python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY containers/*.txt /build/
RUN python3 -m venv /build/venv && /build/venv/bin/pip install -r /build/build.txt

FROM build AS wheel
COPY pyproject.toml README.md LICENSE /src/
COPY kelpie_celery /src/kelpie_celery
COPY workers /src/workers
COPY scaler /src/scaler
RUN /build/venv/bin/pip wheel --no-deps --no-build-isolation -w /wheels /src

# -- the worker --------------------------------------------------------------------------------------------------------

FROM build AS bundle
RUN /build/venv/bin/pip install --no-deps --no-compile --target /opt/kelpie/lib/python3.11/dist-packages \
    -r /build/worker.txt
COPY --from=wheel /wheels /wheels
RUN /build/venv/bin/pip install --no-deps --no-compile --target /opt/kelpie/lib/python3.11/dist-packages /wheels/*.whl
COPY containers/bundle.py /build/
RUN python3 /build/bundle.py make /opt/kelpie
COPY containers/kelpie-worker containers/kelpie /opt/kelpie/
# The static one: like everything in there it must not need the image around it.
RUN cp /usr/bin/tini-static /opt/kelpie/bin/tini \
 && cp -r /usr/share/doc/tini /opt/kelpie/share/doc/ \
 && /build/venv/bin/pip --python /opt/kelpie/bin/python3 check \
 && env -i LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu PYTHONPATH=/usr/lib/python3/dist-packages \
    /opt/kelpie/bin/python3 -I /build/bundle.py check /opt/kelpie

FROM ${DEBIAN} AS worker
LABEL org.opencontainers.image.title="kelpie-worker" org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --user-group --home-dir /work --shell /usr/sbin/nologin kelpie \
 && install -d -o kelpie -g kelpie /work /input /output /checkpoint /var/cache/kelpie
COPY --from=bundle /opt/kelpie /opt/kelpie
USER kelpie
WORKDIR /work
# kelpie-worker puts tini in front of itself where it is the first process.
ENTRYPOINT ["/opt/kelpie/kelpie-worker"]
# Alive is not enough: a worker that hears nothing any more takes no jobs.
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["/opt/kelpie/kelpie-worker", "health"]

# -- the control side --------------------------------------------------------------------------------------------------

FROM build AS control-packages
RUN python3 -m venv --without-pip /opt/venv \
 && /build/venv/bin/pip --python /opt/venv/bin/python install --no-deps -r /build/control.txt
COPY --from=wheel /wheels /wheels
RUN /build/venv/bin/pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl \
 && /build/venv/bin/pip --python /opt/venv/bin/python check

FROM python AS control
LABEL org.opencontainers.image.title="kelpie-control" org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --user-group --home-dir /work --shell /usr/sbin/nologin kelpie \
 && install -d -o kelpie -g kelpie /work
COPY --from=control-packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH KELPIE_READY_FILE=/tmp/kelpie-ready
USER kelpie
WORKDIR /work
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["celery", "-A", "kelpie_celery", "worker", "-Q", "kelpie.control", "-n", "control@%h", "--without-gossip", "--without-mingle"]
# Control worker and beat touch this file with each round that they do.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD find "$KELPIE_READY_FILE" -mmin -1 | grep -q . || { echo "no round within a minute"; exit 1; }

# -- Redis and S3 for one machine --------------------------------------------------------------------------------------

FROM ${DEBIAN} AS redis
LABEL org.opencontainers.image.title="kelpie-redis" org.opencontainers.image.licenses="BSD-3-Clause"
RUN apt-get update \
 && apt-get install -y --no-install-recommends redis-server redis-tools \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o redis -g redis /data
COPY containers/redis-server.sh /usr/local/bin/
USER redis
WORKDIR /data
VOLUME /data
EXPOSE 6379
ENTRYPOINT ["redis-server.sh"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli ping | grep -x PONG

FROM build AS storage-packages
RUN python3 -m venv --without-pip /opt/venv \
 && /build/venv/bin/pip --python /opt/venv/bin/python install --no-deps -r /build/storage.txt

FROM python AS storage
LABEL org.opencontainers.image.title="kelpie-storage" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin kelpie \
 && install -d -o kelpie -g kelpie /data
COPY --from=storage-packages /opt/venv/bin/weed /usr/local/bin/weed
COPY containers/storage-server.sh /usr/local/bin/
USER kelpie
WORKDIR /data
VOLUME /data
EXPOSE 8333
ENTRYPOINT ["/usr/bin/tini", "--", "storage-server.sh"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python3", "-c", "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8333/healthz').status)"]
