"""Decoding and prefill of one model by fusionkit and its peers, in interleaved rounds."""
