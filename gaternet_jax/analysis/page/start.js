// Puts the page together.

const TELLING = 4; // unusual filters of the image shown first

/** What is picked, and what follows from it. */
class App {
  constructor(model) {
    this.model = model;
    this.thumbnails = new Thumbnails(model);
    const [first, second] = [model.groups[0], model.groups[Math.min(1, model.groups.length - 1)]];
    const image = this.firstImage();
    this.state = {
      mode: "image",
      image,
      other: this.firstOther(image),
      slot: "a",
      a: first,
      b: second,
      previous: null,
    };
    const pickImage = (picked) => this.pickImage(picked);
    const pickGate = (gate, announced = true) => this.pickGate(gate, announced);
    this.texts = new Texts(model, this.thumbnails, pickImage, pickGate);
    this.picker = new Picker(model, this.thumbnails, { pickImage, pickClasses: (a, b) => this.change({ a, b }) });
    byId("panels").hidden = false;
    this.map = new GateMap(byId("map"), model, this.view(), pickGate);
    const current = () => (this.state.mode === "image" ? model.group[this.state.image] : null);
    this.panel = new FilterPanel(model, this.thumbnails, { pickGate, pickImage, current });
    new Glance(model, this.thumbnails, (picked) => this.pickFromGlance(picked));
    this.hear();
    this.change({});
    this.pickGate(this.firstGate(), false);
    announce("");
  }

  /** Of the classes' first images, the first that has a few unusual filters to show. */
  firstImage() {
    const firsts = [...this.model.members.values()].map(([image]) => image);
    const isTelling = (image) => {
      const { opened, closed } = this.model.unusual(image);
      return opened.length + closed.length >= TELLING;
    };
    return firsts.find(isTelling) ?? firsts[0];
  }

  /** An image to compare with at first: the first of another class, if there is one. */
  firstOther(image) {
    const { group, count } = this.model;
    const other = group.findIndex((one) => one !== group[image]);
    return other >= 0 ? other : Math.min(1, count - 1);
  }

  firstGate() {
    const { model } = this;
    const bits = (gate) => model.information[gate] || 0;
    return model
      .dependentGates()
      .reduce((best, gate) => (bits(gate) > bits(best) ? gate : best), model.dependentGates()[0] ?? 0);
  }

  hear() {
    for (const input of document.querySelectorAll("input[name=mode]")) {
      input.addEventListener("change", () => this.change({ mode: input.value, previous: null }));
    }
    for (const input of document.querySelectorAll("input[name=slot]")) {
      input.addEventListener("change", () => {
        this.state.slot = input.value;
      });
    }
  }

  view() {
    const { mode, image, other, a, b } = this.state;
    if (mode === "images") return new ImagesView(this.model, image, other);
    return mode === "classes" ? new ClassesView(this.model, a, b) : new ImageView(this.model, image);
  }

  /** Takes up changes of the state and shows what follows from them. */
  change(changes) {
    Object.assign(this.state, changes);
    const { mode, image, other, previous } = this.state;
    const view = this.view();
    byId("pick-images").hidden = mode === "classes";
    byId("pick-classes").hidden = mode !== "classes";
    byId("slots").hidden = mode !== "images";
    byId("picker-title").textContent = {
      image: "Pick an image",
      images: "Pick two images",
      classes: "Pick two classes",
    }[mode];
    this.texts[mode](view, previous);
    this.legend(view);
    this.picker.press(mode === "images" ? [image, other] : [image]);
    this.map.view = view;
    this.map.update(mode === "image" && previous !== null ? this.changed(previous, image) : []);
    if (this.state.gate !== undefined) this.panel.show(this.state.gate);
  }

  changed(before, after) {
    return this.model
      .dependentGates()
      .filter((gate) => this.model.isOpen(before, gate) !== this.model.isOpen(after, gate));
  }

  legend(view) {
    const [size, colours] = [13, themeColours()];
    const density = Math.max(1, window.devicePixelRatio);
    byId("legend").replaceChildren(
      ...view.legend().map(([look, words]) => {
        const canvas = make("canvas", {
          width: (size + 2) * density,
          height: (size + 2) * density,
          "aria-hidden": "true",
        });
        const context = canvas.getContext("2d");
        context.scale(density, density);
        if (typeof look === "function") look(context, 1, 1, size, colours);
        else paintState(context, look, 1, 1, size, colours);
        return make("li", {}, canvas, words);
      }),
    );
  }

  pickImage(image) {
    const { mode, slot } = this.state;
    if (mode === "images") this.change({ [slot === "a" ? "image" : "other"]: image });
    else {
      byId("panels").querySelector("input[value=image]").checked = true;
      this.change({ mode: "image", previous: mode === "image" ? this.state.image : null, image });
    }
  }

  pickFromGlance(image) {
    byId("panels").querySelector("input[value=image]").checked = true;
    this.change({ mode: "image", previous: this.state.image, image });
    byId("shown").scrollIntoView({ block: "start" });
  }

  pickGate(gate, announced = true) {
    this.state.gate = gate;
    this.map.select(gate);
    this.panel.show(gate);
    if (!announced) return;
    announce(
      `${this.model.gateName(gate)}: open for ${percent(this.model.openRate[gate])} of images. Details under the heading "${byId("filter-title").textContent}"`,
    );
    const box = byId("inspector").getBoundingClientRect();
    if (box.top > window.innerHeight || box.bottom < 0) byId("inspector").scrollIntoView({ block: "start" });
  }
}

async function start() {
  try {
    const app = new App(new Model(await readData(byId("data").textContent)));
    document.addEventListener("theme", () => app.legend(app.map.view));
    document.documentElement.dataset.ready = "";
  } catch (error) {
    byId("failure").hidden = false;
    byId("failure").textContent =
      `The explorer cannot start in this browser: ${error.message}. It needs one of 2023 or later.`;
    throw error;
  }
}

start();
