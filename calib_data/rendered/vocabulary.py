"""The words of rendered documents, in English and Korean, and the alphabet of both."""

from __future__ import annotations

from calib_data.document import READ_TEXT

# Labels of a field: key -> (English, Korean).
LABELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "total": (("Total", "TOTAL"), ("합계",)),
    "date": (("Date", "DATE"), ("날짜", "일자")),
    "store": (("Store", "Shop"), ("상호",)),
    "address": (("Address",), ("주소",)),
    "name": (("Name",), ("성명", "이름")),
    "phone": (("Phone", "Tel"), ("전화",)),
    "number": (("No.", "Number"), ("번호",)),
    "tax": (("Tax", "VAT"), ("세금",)),
    "cash": (("Cash", "Paid"), ("현금",)),
    "amount": (("Amount",), ("금액",)),
    "item": (("Item",), ("품목",)),
    "quantity": (("Qty", "Quantity"), ("수량",)),
    "price": (("Price",), ("단가",)),
}
# The question about a field: key -> (English, Korean).
QUESTIONS: dict[str, tuple[str, str]] = {
    "total": ("What is the total?", "합계는 얼마입니까?"),
    "date": ("What is the date?", "날짜는 언제입니까?"),
    "store": ("What is the store?", "상호는 무엇입니까?"),
    "address": ("What is the address?", "주소는 어디입니까?"),
    "name": ("What is the name?", "이름은 무엇입니까?"),
    "phone": ("What is the phone?", "전화는 무엇입니까?"),
    "number": ("What is the number?", "번호는 무엇입니까?"),
    "tax": ("What is the tax?", "세금은 얼마입니까?"),
    "cash": ("How much was paid?", "현금은 얼마입니까?"),
    "amount": ("What is the amount?", "금액은 얼마입니까?"),
}
READ = (READ_TEXT, "글을 읽으세요.")
TITLES = {
    "receipt": (("RECEIPT", "Receipt"), ("영수증",)),
    "invoice": (("INVOICE", "Invoice"), ("계산서",)),
    "form": (("FORM", "Application"), ("신청서",)),
    "table": (("PRICES", "Price list"), ("단가표",)),
    "letter": (("LETTER", "Notice"), ("주문",)),
}
ITEMS = (
    (
        "Coffee",
        "Milk",
        "Bread",
        "Tea",
        "Rice",
        "Noodle",
        "Apple",
        "Juice",
        "Soup",
        "Cake",
        "Paper",
        "Pen",
        "Egg",
        "Fish",
    ),
    ("커피", "우유", "빵", "김밥", "라면", "생수", "과자", "사과", "고기"),
)
NAMES_EN = (
    ("Anna", "Paul", "Kim", "Jane", "Max", "Lucy", "Omar", "Quinn", "Vera", "Zoe", "Eric", "Ben", "Ivy", "Hugo"),
    ("Reed", "Park", "Young", "Lee", "Wood", "Fox", "Hill", "Jones", "Diaz", "Cruz", "Bell", "Voss", "King", "Gray"),
)
NAMES_KO = ("김이박최정강조윤", "민서지우도현수하은준")
STORES_EN = (
    ("Blue", "North", "Green", "Star", "Sun", "River", "Oak", "Gold", "Red", "Lake", "Happy", "Quick", "Jazz", "Vivid"),
    ("Mart", "Cafe", "Books", "Foods", "Shop", "Store", "Works", "Farm", "Hotel", "Toys", "Bikes", "Music"),
)
STORES_KO = (
    ("한빛", "서울", "나라", "우리", "대한", "바다", "강남", "부산", "신라"),
    ("상사", "마트", "식당", "서점", "카페"),
)
STREETS_EN = ("Oak St", "Main St", "Park Ave", "Hill Rd", "Lake Dr", "Mill Ln", "King St", "Bay Rd")
CITIES_KO = ("서울", "부산", "대구", "인천", "광주")
DISTRICTS_KO = ("중구", "동구", "서구", "남구", "북구", "강남구")
LETTER = (
    ("Dear {},", "Please pay {}", "by {}.", "Thank you."),
    ("{} 고객님,", "{}을 내세요.", "{} 까지", "감사합니다."),
)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# A short reasoning, trained for `enable_thinking=True`: "{}" takes the label that is asked for.
THOUGHTS = {"read": ("I read the lines.", "글을 읽는다."), "field": ("I look for {}.", "{} 읽는다.")}

_EXTRA_KO = "원개호점는은"
ASCII = "".join(map(chr, range(33, 127)))


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    assert isinstance(value, tuple)
    return [text for part in value for text in _strings(part)]


def hangul() -> str:
    """Collect every Hangul syllable of rendered documents, questions and reasoning, in code-point order."""
    sources = (
        LABELS, QUESTIONS, READ, TITLES, ITEMS, NAMES_KO, STORES_KO, CITIES_KO, DISTRICTS_KO, LETTER, THOUGHTS,
        _EXTRA_KO,
    )  # fmt: skip
    return "".join(sorted({char for text in _strings(sources) for char in text if "가" <= char <= "힣"}))


HANGUL = hangul()
# Index 0 of the auxiliary character classes is "no character", so the alphabet starts at 1.
ALPHABET = ASCII + "₩" + HANGUL
