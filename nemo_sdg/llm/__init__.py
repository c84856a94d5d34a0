"""Ask language models: requests, clients, one engine per worker, the ledger of paid answers."""
