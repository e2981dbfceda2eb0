"""Only public addresses of named domains are asked, whatever form a URL hides another in."""

import pytest

from console.errors import InputError
from runtime.serve.media import Media
from runtime.serve.media.addresses import is_public, parse_domains, parse_url, resolve_public

from .media_files import PLACE, looked_up

PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
PRIVATE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::",
    "192.0.0.8", "192.0.0.170", "192.88.99.1", "3fff::1",
    "2001:0:7f00:1::", "example.org", "", "2130706433", "0177.0.0.1",
]  # fmt: skip


def test_which_addresses_are_public():
    assert [address for address in PUBLIC if not is_public(address)] == []
    assert [address for address in PRIVATE if is_public(address)] == []


def test_a_host_with_one_private_address_is_refused():
    assert resolve_public("example.org", 443, looked_up("1.1.1.1", "1.1.1.1")) == ["1.1.1.1"]
    with pytest.raises(InputError, match=r"^example\.org is not at a public address"):
        resolve_public("example.org", 443, looked_up("1.1.1.1", "10.0.0.1"))
    with pytest.raises(InputError, match="has no address"):
        resolve_public("example.org", 443, looked_up())


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1", "[::1]", "localhost"])
def test_hosts_that_mean_this_machine_are_refused_even_if_named(host):
    """The system's own look-up reads decimal, octal and short addresses."""
    with pytest.raises(InputError, match=r"image_url: .*(is not at a public address|has no address)"):
        Media(domains=(host,)).image(f"http://{host}/a.png", PLACE)


ALLOWED = parse_domains(["example.org", "Bücher.example", "example.net:8080"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/a b.png".replace(" ", "%20"), (True, "example.org", 443, "/a%20b.png")),
        ("HTTP://EXAMPLE.org.:80/?q=합", (False, "example.org", 80, "/?q=%ED%95%A9")),
        ("https://bücher.example/", (True, "xn--bcher-kva.example", 443, "/")),
        ("http://example.net:8080/a#part", (False, "example.net", 8080, "/a")),
    ],
)
def test_urls_of_allowed_domains(url, expected):
    found = parse_url(url, ALLOWED)
    assert (found.secure, found.host, found.port, found.target) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org@10.0.0.1/", "http://user:word@example.org/", "http://example.org\\@10.0.0.1/",
        "http://10.0.0.1#@example.org/", "http://10.0.0.1?@example.org/", "http://10.0.0.1\t@example.org/",
        "http://sub.example.org/", "http://example.org.evil.net/", "http://evilexample.org/", "http://example.org:22/",
        "http://example.net/", "http://exam\nple.org/", "http:///a", "http://", "//example.org/", "https://[::1]/",
        "http://example.org:99999/", "http://example.org:x/", "http://ｅxample.org:81/", "gopher://example.org/",
        "http://example。org:23/", "http://[example.org]/", "http://example.org%2f@10.0.0.1/", "http://%65xample.org/",
    ],
)  # fmt: skip
def test_urls_that_lead_elsewhere_are_refused(url):
    with pytest.raises(InputError):
        parse_url(url, ALLOWED)


@pytest.mark.parametrize("domain", ["", "http://example.org", "example.org/", "a@b", "a b", "example.org:x", "*.org"])
def test_a_wrong_domain_is_said_at_the_start(domain):
    with pytest.raises(InputError, match=r"--allow-media-domains .*is not a domain"):
        Media(domains=(domain,))
