"""Word lists of the synthetic corpus. Knows words only: no grammar, no chance."""

PETS = ["dog", "cat", "horse", "parrot", "rabbit", "hamster", "goldfish", "turtle", "goat", "donkey", "hen", "pony", "lizard", "mouse", "snake", "duck", "sheep", "cow", "pig", "canary"]

RELATIVES = ["sister", "brother", "mother", "father", "aunt", "uncle", "cousin", "neighbour", "teacher", "boss", "friend", "daughter", "son", "grandmother", "grandfather", "wife", "husband", "doctor", "lawyer", "colleague", "nephew", "niece", "landlord", "trainer"]

COLOURS = ["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "orange", "purple", "pink", "golden", "silver", "dark", "bright", "wooden", "old", "new", "small", "big"]

OBJECTS = ["door", "box", "gate", "safe", "bag", "bicycle", "car", "locker", "suitcase", "cabinet", "drawer", "bottle", "chest", "ticket", "locket", "boat", "house", "garage", "tower", "engine", "machine", "robot", "phone", "laptop", "router", "printer", "camera", "lamp", "folder", "table", "chair", "key", "coat", "hat", "ring", "watch", "book", "map", "letter", "parcel", "tent", "wagon", "barrel", "basket", "ladder", "shelf", "truck", "scooter", "piano", "violin", "guitar", "drum", "mirror", "clock", "vase", "carpet", "oven", "kettle", "fridge"]

QUANTITIES = ["code", "number", "price", "pin", "weight", "size", "length", "limit", "score", "rate", "voltage", "budget"]

SECRETS = ["password", "secret", "label", "name", "nickname", "keyword", "passphrase", "signal"]

SERVICES = ["server", "network", "account", "website", "router", "database", "mailbox", "archive", "library", "club", "office", "lab", "bank", "school", "shop", "hotel", "garden", "studio", "workshop", "museum", "station", "harbour", "clinic", "bakery", "cinema"]

PLACES = ["kitchen", "garden", "garage", "cellar", "attic", "hall", "bedroom", "bathroom", "office", "library", "barn", "shed", "forest", "park", "market", "harbour", "station", "church", "castle", "bridge", "river", "lake", "village", "square", "tower", "mill", "field"]

FAVOURITES = ["colour", "food", "drink", "song", "book", "film", "game", "city", "sport", "flower", "animal", "number", "season", "place", "dish", "tree", "band", "writer", "toy", "fruit"]

EVENTS = ["meeting", "party", "lesson", "concert", "lunch", "dinner", "train", "bus", "ferry", "flight", "exam", "interview", "lecture", "game", "parade", "wedding", "workshop", "appointment", "call", "review", "rehearsal", "show", "tour", "match"]

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

JOBS = ["baker", "teacher", "nurse", "farmer", "pilot", "painter", "plumber", "lawyer", "dentist", "barber", "waiter", "tailor", "carpenter", "gardener", "sailor", "singer", "dancer", "writer", "librarian", "mechanic", "electrician", "chemist", "surgeon", "architect", "journalist", "photographer", "fisherman", "shepherd", "blacksmith", "translator", "programmer", "engineer", "cook", "butcher", "florist", "judge", "clerk", "cashier", "welder", "miner", "potter", "weaver", "jeweller", "printer", "optician", "composer", "actor", "driver", "guard", "detective", "postman", "astronomer", "geologist", "biologist", "banker", "broker", "accountant", "secretary"]

CITIES = ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Lisbon", "Dublin", "Warsaw", "Prague", "Athens", "Cairo", "Tokyo", "Delhi", "Lima", "Boston", "Chicago", "Toronto", "Sydney", "Zurich", "Geneva", "Munich", "Hamburg", "Lyon", "Milan", "Naples", "Porto", "Seville", "Bergen", "Malmo", "Turku", "Riga", "Vilnius", "Krakow", "Gdansk", "Bruges", "Ghent", "Leeds", "Bath"]

FIRST_NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Ida", "Jonas", "Karla", "Leo", "Maria", "Nina", "Oscar", "Paula", "Quentin", "Rosa", "Simon", "Tina", "Ursula", "Victor", "Wanda", "Xenia", "Yusuf", "Zoe", "Alice", "Bob", "Carol", "Daniel", "Eva", "Frank", "Gina", "Hugo", "Irene", "Jack", "Kate", "Lars", "Mona", "Noah", "Olga", "Peter", "Ruth", "Sam", "Theo", "Vera", "Walter", "Amir", "Bela", "Chen", "Dana", "Elif", "Farid", "Hana", "Ivan", "Jin", "Kofi", "Lina", "Marta", "Nils"]

NOUNS = ["lantern", "river", "apple", "stone", "feather", "candle", "mountain", "window", "pepper", "garden", "winter", "summer", "thunder", "button", "copper", "marble", "pocket", "saddle", "ribbon", "hammer", "needle", "pillow", "rocket", "sugar", "ticket", "tunnel", "velvet", "violet", "walnut", "whistle", "yellow", "zebra", "acorn", "anchor", "arrow", "basket", "beacon", "blanket", "branch", "breeze", "bucket", "butter", "cactus", "canyon", "carrot", "cherry", "circle", "cloud", "clover", "cobalt", "coffee", "comet", "coral", "cotton", "crystal", "dragon", "eagle", "ember", "falcon", "fern", "forest", "fossil", "galaxy", "ginger", "glacier", "harbour", "hazel", "honey", "island", "ivory", "jasmine", "jungle", "kitten", "lemon", "lily", "lizard", "magnet", "maple", "meadow", "mirror", "nectar", "olive", "onion", "orbit", "otter", "oyster", "paddle", "panther", "paper", "parsley", "pearl", "pebble", "pencil", "piano", "pine", "planet", "plum", "prairie", "puzzle", "quartz", "rabbit", "raven", "reef", "robin", "saffron", "salmon", "shadow", "shell", "silver", "sparrow", "spice", "spider", "spring", "squirrel", "star", "storm", "sunset", "swan", "temple", "tiger", "timber", "tulip", "turnip", "valley", "vapour", "willow", "wizard"]

TOPICS = ["the sea", "music", "the weather", "old trains", "bread", "mountains", "winter", "tea", "gardens", "books", "football", "rain", "cheese", "the moon", "bicycles", "cooking", "painting", "bees", "long walks", "the city", "stars", "chess", "rivers", "cats", "summer evenings", "soup", "lighthouses", "maps", "clocks", "the forest", "boats", "spring", "snow", "markets", "birds"]

ADJECTIVES = ["quiet", "old", "small", "bright", "warm", "cold", "lovely", "strange", "busy", "calm", "dusty", "green", "grey", "happy", "heavy", "hidden", "large", "long", "narrow", "noisy", "pale", "plain", "quick", "rainy", "rough", "round", "shiny", "slow", "soft", "sunny", "tall", "tiny", "wide"]

THINGS = ["street", "house", "garden", "tree", "wall", "window", "bench", "bridge", "train", "boat", "lamp", "road", "field", "hill", "shop", "cloud", "bird", "horse", "dog", "cat", "clock", "table", "chair", "kettle", "cup", "book", "picture", "letter", "song", "road", "river", "path", "gate", "roof", "stone", "fence", "farm", "orchard"]

VERBS = ["stood", "waited", "slept", "shone", "rested", "moved slowly", "stayed", "looked nice", "was seen", "made a noise", "was forgotten", "could be heard", "was painted", "turned", "was quiet", "was empty"]

WHERE = ["near the river", "behind the house", "at the corner", "by the sea", "under the trees", "in the village", "on the hill", "next to the market", "in the morning", "in the evening", "after the rain", "before lunch", "all day long", "for a long time", "in the old town", "at the end of the road", "on the other side", "last week", "every summer", "as always"]

# Words that are never a value: only these carry their leading space inside their token (see
# tokenizer.py for the reason).
GLUED = ["a", "about", "after", "again", "all", "also", "always", "am", "an", "and", "are", "as", "asked", "at", "be", "because", "been", "before", "but", "by", "called", "came", "can", "could", "day", "did", "do", "does", "for", "found", "from", "gave", "go", "had", "has", "have", "he", "help", "her", "him", "his", "how", "i", "in", "into", "is", "it", "its", "know", "like", "lives", "long", "looked", "made", "me", "my", "name", "near", "not", "now", "of", "on", "once", "one", "or", "out", "please", "remember", "said", "saw", "she", "so", "some", "tell", "than", "thank", "that", "the", "their", "them", "then", "there", "they", "this", "time", "to", "told", "too", "under", "up", "us", "very", "was", "we", "went", "were", "what", "when", "where", "which", "who", "will", "with", "works", "would", "years", "you", "your"]
