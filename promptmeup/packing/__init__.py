"""Raw samples -> shards. In the order of the work: `settings`, `plan` (which sample goes where), `processes` run
`shard_maker`, which sends a shard through the `stages` (`images`, `detector`, `entities`) and writes it (`record`,
`writer`) with its `parts`; `finish` makes the split of them; `pack` leads. `verify` and `check_shard` look at the
result.
"""
