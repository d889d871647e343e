"""Captions of the shipped model's world in languages that the embedder's lexicon does not know.

They measure false reuse only: the model itself reads English.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from models.shapes.world import Scene, Thing


@dataclass(frozen=True)
class Language:
    """Words of a language for each value of an attribute.

    Attributes:
        thing: Pattern of an object: {size}, {colour}, {shape}, {motion}.
        scene: Pattern of a prompt: {things}, {texture}, {background}.
        conjunction: Text between two objects.
    """

    shapes: dict[str, str]
    colours: dict[str, str]
    motions: dict[str, str]
    sizes: dict[str, str]
    textures: dict[str, str]
    thing: str
    scene: str
    conjunction: str

    def caption(self, scene: Scene) -> str:
        """Returns a prompt that names everything in a scene but the places."""
        return self.scene.format(
            things=self.conjunction.join(map(self._describe, scene.things)),
            texture=self.textures[scene.texture],
            background=self.colours[scene.background],
        )

    def _describe(self, thing: Thing) -> str:
        return self.thing.format(
            size=self.sizes[thing.size],
            colour=self.colours[thing.colour],
            shape=self.shapes[thing.shape],
            motion=self.motions[thing.motion],
        )


def _name(keys: str, names: str) -> dict[str, str]:
    """Returns the names by key; both are separated by commas."""
    return dict(zip(keys.split(","), names.split(","), strict=True))


_COLOURS: Final = "red,orange,yellow,green,cyan,blue,navy,purple,pink,brown,white,gray,black"
_SHAPES: Final = "circle,square,triangle"
_MOTIONS: Final = "left,right,up,down,still"
_SIZES: Final = "small,large"
_TEXTURES: Final = "plain,striped,checkered,dotted"

LANGUAGES: Final = {
    "Spanish": Language(
        _name(_SHAPES, "círculo,cuadrado,triángulo"),
        _name(
            _COLOURS,
            "rojo,naranja,amarillo,verde,turquesa,azul,azul marino,morado,rosa,marrón,blanco,gris,negro",
        ),
        _name(
            _MOTIONS,
            "se mueve hacia la izquierda,se mueve hacia la derecha,se mueve hacia arriba,"
            "se mueve hacia abajo,está quieto",
        ),
        _name(_SIZES, "pequeño,grande"),
        _name(_TEXTURES, "liso,de rayas,de cuadros,de lunares"),
        "un {shape} {colour} {size} {motion}",
        "{things} sobre un fondo {texture} {background}",
        " y ",
    ),
    "German": Language(
        _name(_SHAPES, "Kreis,Quadrat,Dreieck"),
        _name(_COLOURS, "rot,orange,gelb,grün,türkis,blau,marineblau,lila,rosa,braun,weiß,grau,schwarz"),
        _name(
            _MOTIONS,
            "bewegt sich nach links,bewegt sich nach rechts,steigt nach oben,sinkt nach unten,bleibt stehen",
        ),
        _name(_SIZES, "klein,groß"),
        _name(_TEXTURES, "einfarbig,gestreift,kariert,gepunktet"),
        "ein {shape} ({size} und {colour}) {motion}",
        "{things}, der Hintergrund ist {texture} und {background}",
        " und ",
    ),
    "Turkish": Language(
        _name(_SHAPES, "daire,kare,üçgen"),
        _name(
            _COLOURS,
            "kırmızı,turuncu,sarı,yeşil,camgöbeği,mavi,lacivert,mor,pembe,kahverengi,beyaz,gri,siyah",
        ),
        _name(
            _MOTIONS,
            "sola hareket ediyor,sağa hareket ediyor,yukarı hareket ediyor,aşağı hareket ediyor,"
            "hareketsiz duruyor",
        ),
        _name(_SIZES, "küçük,büyük"),
        _name(_TEXTURES, "düz,çizgili,kareli,benekli"),
        "{size} {colour} bir {shape} {motion}",
        "{texture} {background} arka planda {things}",
        " ve ",
    ),
    "Russian": Language(
        _name(_SHAPES, "круг,квадрат,треугольник"),
        _name(
            _COLOURS,
            "красный,оранжевый,жёлтый,зелёный,бирюзовый,голубой,синий,фиолетовый,розовый,коричневый,белый,серый,"
            "чёрный",
        ),
        _name(_MOTIONS, "движется влево,движется вправо,движется вверх,движется вниз,стоит на месте"),
        _name(_SIZES, "маленький,большой"),
        _name(_TEXTURES, "однотонный,полосатый,клетчатый,пятнистый"),
        "{size} {colour} {shape} {motion}",
        "{things}, фон {texture} и {background}",
        " и ",
    ),
    "Chinese": Language(
        _name(_SHAPES, "圆形,方块,三角形"),
        _name(_COLOURS, "红色,橙色,黄色,绿色,青色,蓝色,深蓝色,紫色,粉色,棕色,白色,灰色,黑色"),
        _name(_MOTIONS, "向左移动,向右移动,向上移动,向下移动,静止不动"),
        _name(_SIZES, "小,大"),
        _name(_TEXTURES, "纯色,条纹,格子,圆点"),
        "一个{size}的{colour}{shape}{motion}",
        "{things}，背景是{background}的{texture}",
        "，",
    ),
    "Thai": Language(
        _name(_SHAPES, "วงกลม,สี่เหลี่ยม,สามเหลี่ยม"),
        _name(
            _COLOURS,
            "สีแดง,สีส้ม,สีเหลือง,สีเขียว,สีฟ้าอมเขียว,สีน้ำเงิน,สีกรมท่า,สีม่วง,สีชมพู,สีน้ำตาล,สีขาว,สีเทา,สีดำ",
        ),
        _name(_MOTIONS, "เคลื่อนที่ไปทางซ้าย,เคลื่อนที่ไปทางขวา,เคลื่อนที่ขึ้น,เคลื่อนที่ลง,อยู่กับที่"),
        _name(_SIZES, "ขนาดเล็ก,ขนาดใหญ่"),
        _name(_TEXTURES, "เรียบ,ลายทาง,ลายตาราง,ลายจุด"),
        "{shape}{colour}{size}{motion}",
        "{things}บนพื้นหลัง{texture}{background}",
        "และ",
    ),
}
