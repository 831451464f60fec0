"""Which pictures may be captioned and trained on: near-duplicates, copies of evaluation pictures, unsafe and known ones."""
