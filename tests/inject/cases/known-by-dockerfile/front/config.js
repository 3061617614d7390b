module.exports = { backend: "http://back:5000/api", image: "back:12" };
