"""What tests of the pages share: a parser, and the contrast of text."""

from html.parser import HTMLParser

# In Chromium, of elements that have text: the contrast with what is behind it, and which element it is.
CONTRAST = """all => all.filter(one => one.checkVisibility() && one.innerText.trim()).map(one => {
    const channels = text => text.match(/[\\d.]+/g).map(Number);
    const light = color => {
        const [r, g, b] = channels(color).slice(0, 3).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let back = one;
    while ((channels(getComputedStyle(back).backgroundColor)[3] ?? 1) === 0) back = back.parentElement;
    const pair = [getComputedStyle(one).color, getComputedStyle(back).backgroundColor].map(light);
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), one.outerHTML.slice(0, 80)];
})"""
VOID = {"meta", "link", "img", "br"}


class Element:
    def __init__(self, tag, attributes, order):
        self.tag, self.attributes, self.text, self.order = tag, dict(attributes), "", order
        self.inside: list[Element] = []

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def find(self, tag, name=None):
        return [one for one in self.inside if one.tag == tag and (name is None or name in one.classes)]


class Page(HTMLParser):
    """Elements in order, each with all of its text and everything inside; fails on tags that are not closed."""

    def __init__(self, html):
        super().__init__()
        self.root = Element("page", {}, 0)
        self._open, self.count = [self.root], 0
        self.feed(html)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag, attributes):
        self.count += 1
        element = Element(tag, attributes, self.count)
        for one in self._open:
            one.inside.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        for one in self._open:
            one.text += data
