"""A sample of the weights beside all of them: is its error what it says, and what does it save?"""
