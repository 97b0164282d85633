"""The dashboard: a page that any node serves at /. Its source is in `app/`, what is built of it in `static/`."""
