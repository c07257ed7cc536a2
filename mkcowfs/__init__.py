"""Making new volumes: geometry policy and the `mkcowfs` command."""
