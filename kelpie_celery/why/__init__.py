"""Why a job waits, or is not further: `facts` are read from the ledger, `explain` makes sentences of them."""
