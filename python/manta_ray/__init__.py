"""Ray Serve runs the processes of manta: one replica per DP rank, one router per node. Tokens pass from the engines to the
clients through the router's own port; Ray's HTTP port relays the same bytes. Only the public API of `ray.serve` is used, and
the modules that judge a configuration (config, rank_table, prometheus) need no Ray.

Start reading at builder.py: what `serve run pd.yaml` calls."""
