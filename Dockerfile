# cpstream with the demo data: docker build -t cpstream . && docker run --rm -p 8000:8000 cpstream
# It builds with BuildKit and with the classic builder, so nothing here needs a later syntax. docs/docker.md says more.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY requirements/service.txt ./
# chromadb brings 230 MB for making embeddings and for clusters. Vectors are all that passes here, so these go, and the
# import at the end fails the build should chromadb come to need one of them.
RUN python -m pip --python /opt/venv/bin/python install --no-deps --require-hashes -r service.txt \
    && python -m pip --python /opt/venv/bin/python uninstall --yes hf-xet huggingface-hub kubernetes onnxruntime tokenizers \
    && /opt/venv/bin/python -c "import chromadb; chromadb.EphemeralClient().create_collection('built').get()"
# Of plotly the pages want the script, and no Python: 1.5 MB of 47 stay.
RUN cd /opt/venv/lib/python3.*/site-packages && gzip -9n plotly/package_data/plotly.min.js \
    && find plotly _plotly_utils -type f ! -name plotly.min.js.gz -delete && find plotly _plotly_utils -type d -empty -delete \
    && rm -rf /opt/venv/share/jupyter /opt/venv/etc/jupyter \
    && python -m pip --python /opt/venv/bin/python uninstall --yes narwhals

# The package by itself, with the layout of the environment, so that it is a layer of its own in the image.
FROM dependencies AS package
COPY pyproject.toml hatch_build.py README.md LICENSE* ./
COPY client ./client
COPY service ./service
# The wheel itself stays in the image, too: the service hands it out as the client that fits.
ARG REVISION
RUN BUILD_COMMIT=${REVISION} python -m pip wheel --no-deps --wheel-dir /opt/package/share/cpstream . \
    && python -m pip --python /opt/venv/bin/python install --no-deps --prefix /opt/package /opt/package/share/cpstream/*.whl
COPY examples/speech/data /opt/data
RUN chmod -R a+rX /opt/data

FROM ${PYTHON_IMAGE}
# World-writable like /tmp, so that it works under any `docker run --user`.
RUN groupadd --gid 10001 cpstream \
    && useradd --uid 10001 --gid cpstream --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin cpstream \
    && install --directory --owner cpstream --group cpstream --mode 1777 /var/lib/cpstream
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/data /data
COPY --from=package /opt/package /opt/venv

# The drain ends before the 10 s do that `docker stop` allows.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CPSTREAM_SOURCE_PATH=/data \
    CPSTREAM_SNAPSHOT_DIR=/var/lib/cpstream \
    CPSTREAM_HOST=0.0.0.0 \
    CPSTREAM_PORT=8000 \
    CPSTREAM_DRAIN_TIMEOUT_S=7

USER 10001:10001
WORKDIR /data
VOLUME /var/lib/cpstream
EXPOSE 8000

# http.client, because urllib would go through a proxy named in the environment. A certificate is for the name that clients use, not for this.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10m --retries=3 CMD ["python", "-ISc", "\
import http.client as http, os, ssl, sys; \
tls = {'context': ssl._create_unverified_context()} if os.environ.get('CPSTREAM_TLS_CERT_FILE') else {}; \
kind = http.HTTPSConnection if tls else http.HTTPConnection; \
service = kind('127.0.0.1', int(os.environ['CPSTREAM_PORT']), timeout=2, **tls); \
service.request('HEAD', '/readyz'); \
sys.exit(service.getresponse().status != 200)"]

CMD ["cpstream", "serve"]

ARG REVISION=unknown
LABEL org.opencontainers.image.title="cpstream" \
    org.opencontainers.image.description="Streams speech embeddings aligned with their speech rate (CPS) to remote PyTorch trainers" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}"
