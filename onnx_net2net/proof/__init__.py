"""Teacher against student: do the two compute the same?"""
