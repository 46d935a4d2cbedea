"""How master and coordinators know each other: tokens, keys, certificates, TLS."""
