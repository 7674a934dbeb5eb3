"""Takes all the memory there is."""


hog = []
while True:
    hog.append(b"x" * 2**28)
