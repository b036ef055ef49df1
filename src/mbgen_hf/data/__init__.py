"""Raw log -> interaction log -> sequence table -> splits -> training examples -> batches, one file per step."""
