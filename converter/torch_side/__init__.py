"""What runs in torch's process, and that process as its caller sees it.

`questions` and `answers` are plain data that both sides import; `process` is the caller's end, `worker` the other. All
else is imported where torch is.
"""
