"""Documents that are drawn: their words, their content, how they are set and what the picture looks like.

vocabulary.py  words, questions and the alphabet
content.py     rows of text and the fields that can be asked about
fonts.py       fonts from installed packages
draw.py        rows of text to a picture and a box for each character
render.py      the whole document, with its question and answer
"""
