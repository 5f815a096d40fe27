"""A web service over one detector.

`worker` scores in one thread, `limits` says what is refused, `app` answers, `server` listens, `page/` is for people.
"""
