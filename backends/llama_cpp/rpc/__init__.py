"""llama.cpp's RPC: layers of a model on other machines. The server is llama.cpp's own; here are its process
(`server.py`), what asks it (`client.py`), and how fast its devices are (`speed.py`)."""
