"""The sequential part of the chunked recurrences, shared by the operators with matrix states."""
