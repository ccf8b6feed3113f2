"""Raw samples -> shards: `images` prepares pixels, `detector` finds objects, `entities` reads captions,
`record` composes KEY.json, `writer` writes tars and index, `rejects` keeps the books, `pack` runs them all.
"""
