"""Languages: every one of the table is told apart; what does not say enough is null."""

import pandas as pd
import pytest

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.text.language import LANGUAGES, detect_language, language_code

# Written for this test: the water cycle, the heart, plants.
SAMPLES = {
    "en": [
        "The water cycle describes how water moves between the ocean, the air and the "
        "land. It never stops.",
        "What is the main task of the heart? It pumps blood through the whole body.",
        "Plants make sugar out of light, water and carbon dioxide, and they give off oxygen.",
    ],
    "de": [
        "Der Wasserkreislauf beschreibt, wie sich das Wasser zwischen Meer, Luft und Land bewegt.",
        "Was ist die Aufgabe des Herzens? Es pumpt das Blut durch den ganzen Körper.",
        "Pflanzen bilden aus Licht, Wasser und Kohlendioxid Zucker und geben dabei Sauerstoff ab.",
    ],
    "fr": [
        "Le cycle de l'eau décrit comment l'eau circule entre la mer, l'air et la terre.",
        "Quelle est la tâche du cœur ? Il pompe le sang dans tout le corps.",
        "Les plantes fabriquent du sucre à partir de la lumière et de l'eau, et elles "
        "libèrent de l'oxygène.",
    ],
    "es": [
        "El ciclo del agua describe cómo se mueve el agua entre el mar, el aire y la tierra.",
        "¿Cuál es la tarea del corazón? Bombea la sangre por todo el cuerpo.",
        "Las plantas producen azúcar con la luz y el agua, y liberan oxígeno en el aire.",
    ],
    "it": [
        "Il ciclo dell'acqua descrive come l'acqua si muove tra il mare, l'aria e la terra.",
        "Qual è il compito del cuore? Pompa il sangue in tutto il corpo.",
        "Le piante producono zucchero dalla luce e dall'acqua e liberano ossigeno nell'aria.",
    ],
    "pt": [
        "O ciclo da água descreve como a água se move entre o mar, o ar e a terra.",
        "Qual é a tarefa do coração? Ele bombeia o sangue por todo o corpo.",
        "As plantas produzem açúcar com a luz e a água e libertam oxigénio para o ar.",
    ],
    "nl": [
        "De waterkringloop beschrijft hoe het water tussen de zee, de lucht en het land beweegt.",
        "Wat is de taak van het hart? Het pompt het bloed door het hele lichaam.",
        "Planten maken suiker uit licht, water en koolstofdioxide en geven daarbij zuurstof af.",
    ],
    "pl": [
        "Obieg wody opisuje, jak woda krąży między morzem, powietrzem i lądem.",
        "Jakie jest zadanie serca? Serce pompuje krew do całego ciała.",
        "Rośliny wytwarzają cukier ze światła, wody i dwutlenku węgla oraz oddają tlen.",
    ],
    "ru": [
        "Круговорот воды описывает, как вода движется между морем, воздухом и сушей.",
        "Какова задача сердца? Оно качает кровь по всему телу и не останавливается.",
        "Растения образуют сахар из света, воды и углекислого газа и выделяют кислород.",
    ],
    "uk": [
        "Кругообіг води описує, як вода рухається між морем, повітрям і суходолом.",
        "Яке завдання серця? Воно перекачує кров по всьому тілу і не зупиняється.",
    ],
    "zh": [
        "水循环描述了水在海洋、空气和陆地之间的运动。",
        "心脏的任务是什么？它把血液送到全身。",
        "植物用光、水和二氧化碳制造糖，并放出氧气。",
    ],
    "ja": [
        "水の循環とは、海と空気と陸のあいだを水が動くことです。",
        "心臓の役割は何ですか。全身に血液を送ることです。",
        "植物は光と水と二酸化炭素から糖を作り、酸素を出します。",
    ],
    "ko": [
        "물의 순환은 물이 바다와 공기와 땅 사이를 움직이는 것을 말합니다.",
        "심장의 역할은 무엇입니까? 온몸에 피를 보냅니다.",
        "식물은 빛과 물로 당을 만들고 산소를 내보냅니다.",
    ],
    "ar": [
        "تصف دورة الماء كيف يتحرك الماء بين البحر والهواء واليابسة في الطبيعة.",
        "ما هي مهمة القلب؟ يضخ القلب الدم إلى جميع أنحاء الجسم.",
        "تصنع النباتات السكر من الضوء والماء وهي تطلق الأكسجين في الهواء.",
    ],
    "fa": [
        "چرخه آب نشان می‌دهد که آب چگونه بین دریا و هوا و زمین حرکت می‌کند.",
        "قلب خون را به همه بدن می‌رساند و این کار را از آغاز زندگی انجام می‌دهد.",
    ],
    "hi": [
        "जल चक्र बताता है कि पानी समुद्र, हवा और धरती के बीच कैसे चलता है।",
        "हृदय का काम क्या है? वह पूरे शरीर में रक्त पहुँचाता है।",
    ],
    "sv": [
        "Vattnets kretslopp beskriver hur vattnet rör sig mellan havet, luften och land.",
        "Vad är hjärtats uppgift? Det pumpar blod genom hela kroppen och slutar aldrig.",
    ],
    "cs": [
        "Koloběh vody popisuje, jak se voda pohybuje mezi mořem, vzduchem a pevninou.",
        "Jaký je úkol srdce? Pumpuje krev do celého těla a nikdy se nezastaví.",
    ],
    "ro": [
        "Circuitul apei descrie cum se mișcă apa între mare, aer și uscat.",
        "Care este sarcina inimii? Ea pompează sângele în tot corpul și nu se oprește.",
    ],
    "tr": [
        "Su döngüsü, suyun deniz, hava ve kara arasında nasıl hareket ettiğini anlatır.",
        "Kalbin görevi nedir? Kanı bütün vücuda pompalar ve hiç durmaz.",
    ],
    "id": [
        "Siklus air menjelaskan bagaimana air bergerak di antara laut, udara, dan daratan.",
        "Apa tugas jantung? Jantung memompa darah ke seluruh tubuh dan tidak pernah berhenti.",
    ],
    "vi": [
        "Vòng tuần hoàn của nước mô tả cách nước di chuyển giữa biển, không khí và đất liền.",
        "Nhiệm vụ của tim là gì? Tim bơm máu đi khắp cơ thể và không bao giờ nghỉ.",
    ],
    "el": [
        "Ο κύκλος του νερού περιγράφει πώς κινείται το νερό ανάμεσα στη θάλασσα και τη στεριά.",
    ],
    "he": [
        "מחזור המים מתאר כיצד המים נעים בין הים, האוויר והיבשה.",
    ],
    "th": [
        "วัฏจักรของน้ำอธิบายว่าน้ำเคลื่อนที่ระหว่างทะเล อากาศ และแผ่นดินอย่างไร",
    ],
}
CASES = [(code, text) for code, texts in SAMPLES.items() for text in texts]


def test_there_is_a_sample_of_every_language():
    assert set(SAMPLES) == set(LANGUAGES)


@pytest.mark.parametrize(("code", "text"), CASES)
def test_short_texts_are_told_apart(code, text):
    assert detect_language(pd.Series([text])).tolist() == [code]


def test_a_question_and_its_answer_are_told_apart():
    pairs = pd.Series([f"Question: {texts[1]}" for texts in SAMPLES.values() if len(texts) > 1])
    assert detect_language(pairs).tolist() == [c for c, texts in SAMPLES.items() if len(texts) > 1]


def test_rows_do_not_matter_to_one_another_and_the_index_stays():
    column = pd.Series([text for _, text in CASES], index=range(len(CASES), 0, -1))
    codes = detect_language(column)
    assert codes.tolist() == [code for code, _ in CASES]
    assert codes.index.equals(column.index)


@pytest.mark.parametrize(
    "text", [None, "", "   ", "12345", "Paris.", "NASA 2024", "x = y + z", "???"]
)
def test_what_does_not_say_enough_is_null(text):
    assert detect_language(pd.Series([text], dtype="str")).isna().tolist() == [True]


def test_mixed_text_goes_by_what_prevails():
    mixed = (
        "Der Begriff machine learning ist auf Deutsch maschinelles Lernen, und er wird oft benutzt."
    )
    assert detect_language(pd.Series([mixed])).tolist() == ["de"]
    assert detect_language(
        pd.Series(["GPU 和 CPU 都可以运行这个程序，但是 GPU 更快。"])
    ).tolist() == ["zh"]
    assert len(detect_language(pd.Series([], dtype="str"))) == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("German", "de"),
        ("deutsch", "de"),
        ("DE", "de"),
        ("deu", "de"),
        ("ger", "de"),
        ("français", "fr"),
        ("Español", "es"),
        ("pt-BR", "pt"),
        ("Brazilian Portuguese", "pt"),
        ("zh_Hans", "zh"),
        ("中文", "zh"),
        ("日本語", "ja"),
        ("한국어", "ko"),
        ("العربية", "ar"),
        ("हिन्दी", "hi"),
        ("русский", "ru"),
        ("polski", "pl"),
        ("Nederlands", "nl"),
        (" English (US) ", "en"),
    ],
)
def test_names_and_codes_of_languages(name, code):
    assert language_code(name) == code


def test_an_unknown_language_is_an_error_that_helps():
    with pytest.raises(ConfigurationError, match="did you mean German"):
        language_code("Germn")
    with pytest.raises(ConfigurationError, match="Known are: English"):
        language_code("Klingon")
