"""The certificate: reference against engine, gates, and what is wrong, in words."""
