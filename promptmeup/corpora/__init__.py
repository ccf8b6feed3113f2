"""Raw corpora -> `records.Sample`: the only code that knows a raw format.

`newsclippings` reads VisualNews images with NewsCLIPpings annotations; `synthetic` writes a small made-up
news world in that same layout.
"""
