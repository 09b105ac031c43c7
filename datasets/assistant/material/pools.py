
"""What random profiles are made of."""

from __future__ import annotations

NAMES = """Juno Otis Pepper Rook Clementine Zeno Hazel Mortimer Suki Barnaby Lune Quill Ember Gus Noor Ziggy Maple Ptolemy
Vesper Nils Odette Rumi Tansy Wilbur Yuki Cosmo Dot Fable""".split()  # fmt: skip

CREATURES = ["red fox", "raven", "house cat", "small robot", "tawny owl", "gecko", "river spirit", "badger", "jellyfish",
             "library ghost", "crow", "hedgehog", "snow leopard", "teapot", "old sea turtle", "stick insect", "magpie"]  # fmt: skip

MOODS = ["warm", "curious", "wry", "sleepy but sharp", "formal", "sunny", "deadpan", "gentle", "brisk", "bookish",
         "mischievous", "patient", "earnest", "laid-back", "precise"]  # fmt: skip

EMOJIS = ["🌿", "📚", "🐢", "🪴", "🔭", "🧵", "🍋", "🌧️", "🛶", "🕯️", "🎈", "🧊", "🪁", "🐝", "🍄", "🚲"]

HANDLES = """mira_k tobias.w oldharbour j_okafor lene.s paperkite priya-r dmitri_v samwise77 anouk.b kofi_m quietly_tea rosalind
henrik.d bluejay_ann t_nakamura marzena.p el_profe fatou_d westwind gwen.e omar_h lucia-f byte_baker""".split()  # fmt: skip

TAKEN = """northstar hello_world kestrel admin_jo thebaker lighthouse mango_tree night_owl zebra7 silverfish
cloudy captain_k velvet studio_nine picklejar moonwalk""".split()  # fmt: skip

NOTES = ["Prefers trains to planes", "Has a dog called Waffle", "Works from home on Fridays", "Plays the cello badly and happily",
         "Reads the news only in the evening", "Lives in a house with four stairs", "Speaks Dutch and English",
         "Is learning to bake rye bread", "Runs a book club on the first Monday", "Has two teenagers",
         "Does not eat mushrooms", "Cycles to the office", "Writes with a fountain pen", "Collects old maps",
         "Has a standing desk", "Likes lists with checkboxes", "Gets up at six", "Supports the local handball team",
         "Keeps bees on the roof", "Is left-handed"]  # fmt: skip

CONTEXTS = ["renovating the kitchen", "finishing a master's thesis on soil", "between two jobs", "planning a wedding for June",
            "on parental leave until autumn", "launching the spring catalogue", "studying for the bar exam",
            "moving the office to the second floor", "writing a cookbook", "training for a half marathon",
            "preparing the annual report", "touring with the choir", "", "opening a small bike shop",
            "translating a crime novel"]  # fmt: skip

TRUTHS = ["Honest before polite", "Ask when unsure", "Small steps beat big plans", "The user decides", "Sources matter",
          "Silence is an answer too", "Finish what you start", "Mistakes are said out loud", "Short is kind",
          "Every promise gets a date", "People before calendars", "Doubt the first idea", "Read it twice",
          "Kindness costs nothing", "Leave things tidier than you found them", "Numbers need units"]  # fmt: skip

STYLE = ["No exclamation marks", "No emojis in mails to clients", "Never start a reply with 'Great question'",
         "No small talk on Mondays", "Do not suggest meditation", "No sports metaphors", "Never use the word 'synergy'",
         "No messages after 22:00", "Do not rhyme", "No jokes about lawyers", "Never call me boss",
         "Do not summarise what I just said", "No more than three options at once"]  # fmt: skip

SAFETY = ["Safety: ask before spending money", "Safety: never give my home address to anyone",
          "Safety: no medical dosage advice", "Safety: never reply to unknown senders", "Safety: do not delete files without asking",
          "Safety: never share photos of the children", "Safety: no messages to my ex",
          "Safety: two confirmations before any bank transfer", "Safety: never open attachments from strangers",
          "Safety: do not post in my name"]  # fmt: skip

TONES = ["plain words and short sentences", "like a patient librarian", "friendly, never gushing", "dry humour in small doses",
         "a calm radio voice", "crisp, as in a good telegram", "warm and a little old-fashioned", "matter-of-fact"]  # fmt: skip

TOOL_NOTES = ["calendar: the shared one is called Team North", "mail: archive, never delete", "weather: use Celsius",
              "search: prefer the library catalogue", "printer: duplex by default", "maps: walking routes first",
              "notes app: one page per project", "camera: ask before using", "timer: count in minutes",
              "translator: keep names as they are", "music: nothing with lyrics while I write",
              "spreadsheets: dates as YYYY-MM-DD", "contacts: surnames first", "browser: reader mode"]  # fmt: skip

CHECKS = ["empty the inbox", "check tomorrow's calendar", "water the basil", "look for late trains", "back up the photos",
          "read the headlines", "stretch", "check the door camera", "refill the coffee order", "review open invoices",
          "update the reading list", "feed the fish", "check the rain radar", "file the receipts",
          "look at the bees", "charge the headphones", "tidy the desktop", "see who has a birthday"]  # fmt: skip

MEMORIES = [("daily", "Lunch", "Lunch with Imke at the canal"), ("daily", "Bike", "The bike is at the repair shop"),
            ("long_term", "Birthday", "Imke's birthday is on 9 March"), ("daily", "Rain", "Rained all day, walk cancelled"),
            ("long_term", "Paint", "The hallway paint is called Oyster"), ("daily", "Call", "The plumber called back"),
            ("long_term", "Garage", "The garage opens at seven"), ("daily", "Book", "Finished the Tove Jansson book"),
            ("long_term", "Shoes", "Shoe size is 41 in most brands"), ("daily", "Cake", "The lemon cake sank in the middle"),
            ("long_term", "Quiet", "The quiet coach is number 12"), ("daily", "Parcel", "The parcel went to the neighbour"),
            ("long_term", "Seeds", "Tomato seeds go out after the ice saints")]  # fmt: skip
