"""Raw corpora -> records: the only code that knows a raw format.

For pre-training, `newsclippings` reads VisualNews images with NewsCLIPpings annotations into `records.Sample`;
`synthetic` writes a small made-up news world in that same layout. For the downstream tasks, `twitter`, `mnre`
and `extraction_jsonl` read sentences with their photos; `extraction` takes any of the three and counts.
"""
