export const level = "info";
