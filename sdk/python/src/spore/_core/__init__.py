"""What the synchronous and the asynchronous half share: arguments to requests, bytes to answers, nothing else.

Nothing here opens a connection, waits, or knows which half it serves.
"""
