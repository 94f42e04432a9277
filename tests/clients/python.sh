# The Python client: typed objects, dynamic ones, watches, patches, sessions.
exec "$PYTHON" python.py
